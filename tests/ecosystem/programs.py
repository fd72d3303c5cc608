"""Training and sampling with libraries that other people wrote, as their users write it.

Each `make(wrap)` decorates one step and returns a `Program`; libraries are imported inside, so that
one that is not installed fails its own programs only.
"""

import itertools

import numpy as np
import tensorflow as tf

from terra_tf.testing import Program

_normal = tf.random.stateless_normal


def _numbered(step):
    """A step that is given the number of its call."""
    numbers = itertools.count()
    return lambda: step(next(numbers))


def tfp_hmc(wrap):
    """TensorFlow Probability: a Hamiltonian Monte Carlo step of three leapfrogs."""
    import tensorflow_probability as tfp  # noqa: PLC0415

    target = tfp.distributions.MultivariateNormalDiag(tf.zeros(4), tf.ones(4))
    kernel = tfp.mcmc.HamiltonianMonteCarlo(target.log_prob, step_size=0.2, num_leapfrog_steps=3)
    state = {"x": tf.zeros(4)}
    state["results"] = kernel.bootstrap_results(state["x"])

    @wrap
    def step(x, results, seed):
        return kernel.one_step(x, results, seed=seed)

    def run(number):
        seed = tf.constant([number, 7])
        state["x"], state["results"] = step(state["x"], state["results"], seed)
        return state["x"], state["results"].is_accepted

    return Program(_numbered(run))


def tfp_variational_inference(wrap):
    """TensorFlow Probability: a Monte Carlo variational loss, and Keras' Adam."""
    import tensorflow_probability as tfp  # noqa: PLC0415

    loc = tf.Variable(tf.zeros(3))
    scale = tfp.util.TransformedVariable(tf.ones(3), tfp.bijectors.Softplus())
    surrogate = tfp.distributions.MultivariateNormalDiag(loc, scale)
    target = tfp.distributions.MultivariateNormalDiag([1.0, 2.0, 3.0], [1.0, 0.5, 2.0])
    variables = surrogate.trainable_variables
    optimizer = tf.keras.optimizers.Adam(0.05)
    optimizer.build(variables)

    @wrap
    def step(seed):
        with tf.GradientTape() as tape:
            loss = tfp.vi.monte_carlo_variational_loss(
                target.log_prob, surrogate, sample_size=5, seed=seed
            )
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return Program(_numbered(lambda number: step(tf.constant([number, 3]))), variables)


def tfp_elbo(wrap):
    """TensorFlow Probability: distributions made in the step."""
    import tensorflow_probability as tfp  # noqa: PLC0415

    loc, log_scale = tf.Variable(tf.zeros(3)), tf.Variable(tf.zeros(3))
    optimizer = tf.keras.optimizers.Adam(0.05)
    optimizer.build([loc, log_scale])

    @wrap
    def step(labels, seed):
        with tf.GradientTape() as tape:
            posterior = tfp.distributions.Normal(loc, tf.exp(log_scale))
            z = posterior.sample(8, seed=seed)
            prior = tfp.distributions.Normal(0.0, 1.0).log_prob(z)
            likelihood = tfp.distributions.Bernoulli(logits=z).log_prob(labels)
            loss = -tf.reduce_mean(prior + likelihood - posterior.log_prob(z))
        gradients = tape.gradient(loss, [loc, log_scale])
        optimizer.apply_gradients(zip(gradients, [loc, log_scale], strict=True))
        return loss

    labels = tf.constant([1.0, 0.0, 1.0])
    return Program(
        _numbered(lambda number: step(labels, tf.constant([number, 3]))), [loc, log_scale]
    )


def sonnet_mlp(wrap):
    """Sonnet: a multi-layer perceptron and Sonnet's Adam."""
    import sonnet as snt  # noqa: PLC0415

    tf.random.set_seed(1)
    net = snt.nets.MLP([64, 64, 10])
    net(tf.zeros([1, 16]))
    return _sonnet_classifier(wrap, net, snt.optimizers.Adam(1e-3), [32, 16])


def sonnet_resnet(wrap):
    """Sonnet: a residual network with batch normalization."""
    import sonnet as snt  # noqa: PLC0415

    tf.random.set_seed(1)
    net = snt.nets.ResNet([1, 1, 1, 1], 10, resnet_v2=True)
    net(tf.zeros([1, 32, 32, 3]), is_training=True)
    optimizer = snt.optimizers.Momentum(0.01, 0.9)
    return _sonnet_classifier(wrap, net, optimizer, [2, 32, 32, 3], is_training=True)


def _sonnet_classifier(wrap, net, optimizer, shape, **kwargs):
    labels = tf.range(shape[0]) % 10

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, net(x, **kwargs))
            loss = tf.reduce_mean(losses)
        variables = net.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return Program(_numbered(lambda number: step(_normal(shape, [number, 0]))), net.variables)


def sonnet_lstm(wrap):
    """Sonnet: an LSTM's core in a loop of the user's."""
    import sonnet as snt  # noqa: PLC0415

    tf.random.set_seed(1)
    core, head, optimizer = snt.LSTM(32), snt.Linear(1), snt.optimizers.SGD(0.1)
    head(core(tf.zeros([4, 8]), core.initial_state(4))[0])

    @wrap
    def step(x):
        with tf.GradientTape() as tape:
            state = core.initial_state(4)
            for i in range(10):
                output, state = core(x[i], state)
            loss = tf.reduce_mean(head(output) ** 2)
        variables = core.trainable_variables + head.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    variables = core.trainable_variables + head.trainable_variables
    return Program(_numbered(lambda number: step(_normal([10, 4, 8], [number, 0]))), variables)


def gpflow_regression(wrap):
    """GPflow: exact Gaussian-process regression, its kernel's parameters trained by Adam."""
    import gpflow  # noqa: PLC0415

    rng = np.random.default_rng(0)
    x = rng.random((30, 1))
    y = np.sin(6 * x) + 0.1 * rng.standard_normal((30, 1))
    model = gpflow.models.GPR((x, y), kernel=gpflow.kernels.SquaredExponential())
    return _gpflow(wrap, model, lambda: model.training_loss())


def gpflow_sparse(wrap):
    """GPflow: a sparse variational Gaussian process, in batches."""
    import gpflow  # noqa: PLC0415

    rng = np.random.default_rng(0)
    x = rng.random((200, 1))
    y = np.sin(6 * x) + 0.1 * rng.standard_normal((200, 1))
    model = gpflow.models.SVGP(
        gpflow.kernels.Matern32(), gpflow.likelihoods.Gaussian(), x[:10].copy(), num_data=200
    )
    batches = [(tf.constant(x[i : i + 20]), tf.constant(y[i : i + 20])) for i in range(0, 200, 20)]
    return _gpflow(wrap, model, model.training_loss, batches)


def _gpflow(wrap, model, loss_of, batches=(None,)):
    optimizer = tf.keras.optimizers.Adam(0.01)
    optimizer.build(list(model.trainable_variables))

    @wrap
    def step(batch):
        with tf.GradientTape() as tape:
            loss = loss_of() if batch is None else loss_of(batch)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    run = _numbered(lambda number: step(batches[number % len(batches)]))
    return Program(run, model.trainable_variables)


PROGRAMS = {
    make.__name__: make
    for make in (
        tfp_hmc,
        tfp_variational_inference,
        tfp_elbo,
        sonnet_mlp,
        sonnet_resnet,
        sonnet_lstm,
        gpflow_regression,
        gpflow_sparse,
    )
}
