from . import benchmark as benchmark, scenes as scenes
from .benchmark import dataset_class as dataset_class
