from .cutting import merged as merged
from .decoders import (
    Attention as Attention,
    Call as Call,
    Decoder as Decoder,
    find_decoder as find_decoder,
    image_token as image_token,
)
from .engine import truncated as truncated
from .hooks import claimed as claimed, replaced as replaced, replaced_generate as replaced_generate
from .prompt import Prompt as Prompt
from .ranking import head_rows as head_rows
from .refusals import (
    TruncationError as TruncationError,
    check_generation as check_generation,
    check_setting as check_setting,
)
from .seeing import (
    OF_INPUT as OF_INPUT,
    OF_TOWER as OF_TOWER,
    Evidence as Evidence,
    gathered as gathered,
    mean_row as mean_row,
    peeked as peeked,
)
from .sight import Watch as Watch, watching as watching
from .trace import PromptTrace as PromptTrace, Trace as Trace
