from .base import Decoder as Decoder
from .calls import Attention as Attention, Call as Call
from .find import find_decoder as find_decoder
from .interface import attended as attended
from .parallel import group_of as group_of, mean_of as mean_of
from .tokens import image_token as image_token
