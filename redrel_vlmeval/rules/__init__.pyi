from . import clip as clip, goldens as goldens, listing as listing
from .deciding import Choice as Choice, decide as decide
from .ordering import highest as highest
from .registry import (
    DEFAULT as DEFAULT,
    VARIABLE as VARIABLE,
    Rule as Rule,
    RuleError as RuleError,
    find as find,
    known as known,
    reserved as reserved,
    rule as rule,
    suffix as suffix,
)
from .seen import (
    AFTER_A_BLOCK as AFTER_A_BLOCK,
    FIELDS as FIELDS,
    Merged as Merged,
    Picture as Picture,
    Replaced as Replaced,
    Seen as Seen,
    Sight as Sight,
    Smaller as Smaller,
    Tower as Tower,
)
