from .asking import draw as draw, kind_of as kind_of, report as report, try_name as try_name
from .checkpoints import MAKERS as MAKERS, able as able, make as make
from .checks import Tried as Tried, attempt as attempt
from .cpu import on_cpu as on_cpu
