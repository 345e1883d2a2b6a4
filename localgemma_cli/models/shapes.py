"""The shapes of the released sizes, from their config.json files."""

from dataclasses import replace

from localgemma_cli.models.architecture import Architecture, Gemma4Parts


def _gemma2(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int) -> Architecture:
    return Architecture(
        family="gemma2",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocabulary=256_000,
        context_length=8192,
        sliding_window=4096,
        sliding_layers=(layers + 1) // 2,
        softcap=True,
        tied_head=True,
    )


def _gemma3(
    layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, ffn: int, *, sees: bool
) -> Architecture:
    """`sees`: the sizes that accept images have a larger vocabulary, context and window."""
    return Architecture(
        family="gemma3_text",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=ffn,
        vocabulary=262_208 if sees else 262_144,
        context_length=131_072 if sees else 32_768,
        sliding_window=1024 if sees else 512,
        sliding_layers=layers - layers // 6,
        softcap=False,
        tied_head=True,
    )


def _gemma4(
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int,
    ffn: int,
    *,
    window: int,
    context: int,
    full: int,
    parts: Gemma4Parts,
) -> Architecture:
    """`full` of the layers attend to the whole context."""
    return Architecture(
        family="gemma4_text",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=256,
        ffn=ffn,
        vocabulary=262_144,
        context_length=context,
        sliding_window=window,
        sliding_layers=layers - full,
        softcap=False,
        tied_head=True,
        gemma4=parts,
    )


GEMMA_7B = Architecture(
    family="gemma",
    layers=28,
    hidden=3072,
    heads=16,
    kv_heads=16,
    head_dim=256,
    ffn=24576,
    vocabulary=256_000,
    context_length=8192,
    sliding_window=None,
    sliding_layers=0,
    softcap=False,
    tied_head=True,
)
GEMMA_7B_OWN_HEAD = replace(GEMMA_7B, tied_head=False)

GEMMA_2_2B = _gemma2(26, 2304, 8, 4, 256, 9216)
GEMMA_2_9B = _gemma2(42, 3584, 16, 8, 256, 14336)
GEMMA_2_27B = _gemma2(46, 4608, 32, 16, 128, 36864)

GEMMA_3_270M = _gemma3(18, 640, 4, 1, 256, 2048, sees=False)
GEMMA_3_1B = _gemma3(26, 1152, 4, 1, 256, 6912, sees=False)
GEMMA_3_4B = _gemma3(34, 2560, 8, 4, 256, 10240, sees=True)
GEMMA_3_12B = _gemma3(48, 3840, 16, 8, 256, 15360, sees=True)
GEMMA_3_27B = _gemma3(62, 5376, 32, 16, 128, 21504, sees=True)

GEMMA_4_E2B = _gemma4(
    35,
    1536,
    8,
    1,
    6144,
    window=512,
    context=131_072,
    full=7,
    parts=Gemma4Parts(512, 1, False, 20, 4, 12288, 256),
)
GEMMA_4_E4B = _gemma4(
    42,
    2560,
    8,
    2,
    10240,
    window=512,
    context=131_072,
    full=7,
    parts=Gemma4Parts(512, 2, False, 18, 3, 10240, 256),
)
GEMMA_4_31B = _gemma4(
    60,
    5376,
    32,
    16,
    21504,
    window=1024,
    context=262_144,
    full=10,
    parts=Gemma4Parts(512, 4, True, 0, 0, 21504, 0),
)
