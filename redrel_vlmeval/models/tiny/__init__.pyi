from . import benchmark as benchmark, scenes as scenes
from .benchmark import dataset_classes as dataset_classes
