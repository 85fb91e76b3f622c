"""What every attempt imports, paid for once by the process that the attempts are forked from."""

import torch

from lsat_ray.runs import local, replay

torch.set_num_threads(1)
__all__ = ["local", "replay"]
