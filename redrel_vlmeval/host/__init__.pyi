from . import (
    benchmark as benchmark,
    child as child,
    facts as facts,
    mending as mending,
    pictures as pictures,
    runner as runner,
    verdicts as verdicts,
)
from .benchmark import Benchmark as Benchmark, models as models
from .dialogues import turns as turns
from .facts import MS as MS, UPSTREAM as UPSTREAM, arguments as arguments
from .folders import (
    RECORDS as RECORDS,
    STATUS as STATUS,
    SWEEPING as SWEEPING,
    Cell as Cell,
    Given as Given,
    find_cells as find_cells,
)
from .matching import NONE as NONE, can_infer as can_infer
from .question import (
    HostQuestion as HostQuestion,
    asked_by_host as asked_by_host,
    failed_answer as failed_answer,
    failures as failures,
    upcoming as upcoming,
)
from .ratings import ratios as ratios
from .runner import HostMissing as HostMissing, host_folder as host_folder
from .scores import (
    Metric as Metric,
    NoRule as NoRule,
    flat as flat,
    metrics_of as metrics_of,
    shares_pictures as shares_pictures,
)
from .table import VariantTable as VariantTable, build_base as build_base, kind_of as kind_of
from .tables import (
    Columns as Columns,
    ResultsError as ResultsError,
    read_columns as read_columns,
    read_json as read_json,
    read_rows as read_rows,
)
from .verdicts import answers as answers
