from . import benchmark as benchmark, making as making, pairs as pairs
from .benchmark import dataset_class as dataset_class
