from .reading import grammar as grammar, looks_like_variant as looks_like_variant, nearest as nearest, parse as parse
from .spec import (
    MARK as MARK,
    POSITIONS as POSITIONS,
    PROMPTS as PROMPTS,
    ROWS as ROWS,
    Stage as Stage,
    VariantSpec as VariantSpec,
    shortened as shortened,
    stage_before as stage_before,
)
