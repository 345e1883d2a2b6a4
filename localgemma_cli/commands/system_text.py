"""`--system` and `--system-file`, and what `models.toml` says where neither is given."""

from localgemma_cli.errors import UsageError
from localgemma_cli.models.own_models import OwnModel
from localgemma_cli.text import normalize, read_text


def read_system(system: str | None, path: str | None, own: OwnModel | None = None) -> str | None:
    """Raises UsageError for both at once or no text, NotFoundError for a file that cannot be read."""
    if path is None:
        system = own.system if system is None and own else system
        return system if system is None else normalize(system)
    if system is not None:
        raise UsageError("--system and --system-file cannot both be had.", "Take one of them.")
    return read_text(path, pipes=True)
