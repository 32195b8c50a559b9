from cramjax.model.flops import *  # noqa: D100, F403  # moved
