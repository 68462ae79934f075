from .base import Attention as Attention, Call as Call, Decoder as Decoder
from .find import find_decoder as find_decoder
from .llama_like import image_token as image_token
