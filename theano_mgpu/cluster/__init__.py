"""Several processes under mpirun: which ranks there are, and what they tell each other. Nothing here without mpirun."""

from theano_mgpu.cluster.agreement import agree
from theano_mgpu.cluster.communication import Cluster
from theano_mgpu.cluster.launch import cluster, ranks_launched

__all__ = ["Cluster", "agree", "cluster", "ranks_launched"]
