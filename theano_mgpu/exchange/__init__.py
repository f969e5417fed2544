"""Beyond averaging every step: what ranks that train each on their own part of the data tell each other, and when.

    step = tm.function([images, labels, rate], tm.average(loss), updates=updates, contexts=contexts.local)
    train = tm.exchange.local_sgd(step, every=8)
    loss = train(batch_images, batch_labels, 0.1)      # this rank's own step, and after each eighth the exchange

Each rule wraps a step of one rank (an ``Exchange``), is called as the step is and gives what the step gives. All ranks
make the same rules and call them equally often: an exchange waits for every rank.

params:
    The shared variables that are exchanged, floating. By default those of a ``ParameterStore`` that the step updates:
    parameters and batch norm's moving averages. What an update rule keeps (velocities, moments) stays each rank's own,
    as in the papers.

At the start every rank takes the values of rank 0. What a rule keeps itself lies in shared variables, ``train.state``,
which checkpoints can hold. Sums over ranks are joined in one fixed tree, so all ranks have the same bits of them.

Without mpirun, or with one rank, there is nothing to exchange, and the rules leave the step as it is; ``easgd`` still
pulls the parameters to its centre and the centre to them.
"""

from theano_mgpu.exchange.rules import compressed, easgd, gossip, local_sgd, mean_over_ranks
from theano_mgpu.exchange.stepping import Elastic, Exchange

__all__ = ["Elastic", "Exchange", "compressed", "easgd", "gossip", "local_sgd", "mean_over_ranks"]
