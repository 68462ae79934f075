from .checkpoint import untrained_qwen as untrained_qwen
from .core import QwenCore as QwenCore
from .model import RedrelQwenVL as RedrelQwenVL, RedrelQwenVLChat as RedrelQwenVLChat
