from . import gpus as gpus, smol as smol, tiny as tiny
from .ahead import Ahead as Ahead, ahead_of as ahead_of
from .at_once import AtOnce as AtOnce
from .batching import batch_size as batch_size
from .boxed import checkpoint_path as checkpoint_path, table as table
from .calls import (
    Alone as Alone,
    Call as Call,
    answer_length as answer_length,
    captured as captured,
    draws as draws,
    ends as ends,
    generated as generated,
    in_force as in_force,
    setting_of as setting_of,
    together as together,
)
from .checkpoint import choose_placement as choose_placement, weight_files as weight_files
from .efficiency import (
    MEASURED as MEASURED,
    Meter as Meter,
    computed as computed,
    costs as costs,
    kv_bytes as kv_bytes,
    now as now,
    prefill_flops as prefill_flops,
    shares as shares,
)
from .layouts import View as View, patches as patches
from .llava import (
    LLaVA15 as LLaVA15,
    LlavaCore as LlavaCore,
    LLaVANext as LLaVANext,
    question_text as question_text,
    square_box as square_box,
)
from .pictures import (
    check_readable as check_readable,
    is_missing as is_missing,
    opened as opened,
    pictures_of as pictures_of,
)
from .places import recorded as recorded, told as told, views as views
from .plain import batched as batched
from .qwen import (
    QwenCore as QwenCore,
    RedrelQwenVL as RedrelQwenVL,
    RedrelQwenVLChat as RedrelQwenVLChat,
    untrained_qwen as untrained_qwen,
)
from .recorder import facts_of as facts_of, versions as versions
from .tiny import benchmark as benchmark, scenes as scenes
from .untouched import as_before as as_before
from .variant import TruncatedVLM as TruncatedVLM
from .wrapping import find_torch_model as find_torch_model, tokenizer_of as tokenizer_of, unrecorded as unrecorded
