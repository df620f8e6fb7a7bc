__version__ = "0.0.1"

import warnings
<<<<<<< HEAD
# fastai calls `torch.jit.script` while it is imported; torch announces its removal, and a user can do nothing about it.
warnings.filterwarnings("ignore", r"`torch\.jit\.script` is", FutureWarning, r"torch\.jit\._script")
=======

# fastai.layers calls torch.jit.script when it is imported, and recent versions of torch tell every user that this function
# is deprecated. Only fastai can change that; every module here is imported after this file, so its users need not read it.
warnings.filterwarnings("ignore", message=r"`torch\.jit\.script` is (deprecated|not supported)", category=FutureWarning)
>>>>>>> main
