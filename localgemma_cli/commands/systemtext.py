"""`--system` and `--system-file`, and what `models.toml` says where neither is given."""

from pathlib import Path

from localgemma_cli.errors import NotFoundError, UsageError
from localgemma_cli.planning.own_models import OwnModel


def read_system(system: str | None, path: str | None, own: OwnModel | None = None) -> str | None:
    """Raises UsageError for both at once or no text, NotFoundError for a file that cannot be read."""
    if path is None:
        return own.system if system is None and own else system
    if system is not None:
        raise UsageError("--system and --system-file cannot both be had.", "Take one of them.")
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UsageError(f"{path} is not UTF-8 text.", "Convert the file first.") from None
    except OSError as error:
        raise NotFoundError(f"{path} cannot be read: {error.strerror}.", "Check --system-file.") from None
