"""Several processes under mpirun: which ranks there are, and what they tell each other. Nothing here without mpirun."""

from theano_mgpu.cluster.agreement import agree
from theano_mgpu.cluster.communication import Cluster, Told, together
from theano_mgpu.cluster.first import by_first
from theano_mgpu.cluster.launch import cluster, ranks_launched
from theano_mgpu.cluster.xla import place_of, require_jax, require_one_place_each, start_jax

__all__ = [
    "Cluster",
    "Told",
    "agree",
    "by_first",
    "cluster",
    "place_of",
    "ranks_launched",
    "require_jax",
    "require_one_place_each",
    "start_jax",
    "together",
]
