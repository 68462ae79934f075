from . import ranking as ranking
from .decoders import (
    Attention as Attention,
    Call as Call,
    Decoder as Decoder,
    find_decoder as find_decoder,
    image_token as image_token,
    replaced as replaced,
    replaced_generate as replaced_generate,
)
from .engine import claimed as claimed, truncated as truncated
from .prompt import Prompt as Prompt
from .ranking import head_rows as head_rows
from .refusals import check_generation as check_generation, check_setting as check_setting
from .trace import PromptTrace as PromptTrace, Trace as Trace
