from . import (
    batch as batch,
    command as command,
    maps as maps,
    prefill as prefill,
    price as price,
    ranking as ranking,
    subjects as subjects,
    sweep as sweep,
)
