from .core import LlavaCore as LlavaCore
from .input import question_text as question_text, square_box as square_box
from .model import LLaVA15 as LLaVA15
from .next import LLaVANext as LLaVANext
