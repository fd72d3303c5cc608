"""What programs of the profile `keras` are made of: objects, expressions, changes.

Besides the kinds of `expressions` there are kinds of objects, which templates name likewise:

    K a layer of any type, float32[3, 4] to float32[3, 4]
    X Dense   Y BatchNormalization   Z Dropout   U of the user's   N Sequential
    J a convolution, float32[3, 4, 1] to float32[3, 4, 2]
    E an embedding, int32[3] to float32[3, 4]
    O an optimizer   R one whose rate is a number   Q a metric   C a loss
    t a value of `training`   a an activation
"""

import random

from tests.fuzz.expressions import parse, pick_from

WEIGHTED = {
    # Kind, and how the object is made.
    "layers": """
        4 X Dense(4, activation={a})
        2 X Dense(4)
        1 X Dense(4, use_bias=False, kernel_regularizer=keras.regularizers.L2(0.01))
        1 X Dense(4, activation="tanh", activity_regularizer="l2")
        1 X Dense(4, kernel_regularizer=Penalty())
        1 X Dense(4, activation={a}, dtype="mixed_float16")
        4 Y BatchNormalization()
        1 Y BatchNormalization(momentum=0.9, epsilon=0.01)
        2 K LayerNormalization()
        3 Z Dropout(0.3, seed=5)
        2 Z Dropout(0.3)
        1 K GaussianNoise(0.1, seed=3)
        2 K Activation({a})
        1 K ReLU(negative_slope=0.1)
        1 K Rescaling(0.5)
        1 K Softmax()
        1 K UnitNormalization()
        1 K ActivityRegularization(l2=0.01)
        1 K Lambda(lambda h: h * SETTINGS["scale"])
        1 K SpectralNormalization(keras.layers.Dense(4))
        1 X Dense(4, kernel_constraint=keras.constraints.MaxNorm(0.9), bias_constraint=capped)
        1 K EinsumDense("ab,bc->ac", output_shape=4)
        2 J Conv1D(2, 3, padding="same", activation="relu")
        1 J SeparableConv1D(2, 3, padding="same")
        1 J GRU(2, return_sequences=True)
        2 E Embedding(3, 4)
        1 E Embedding(3, 4, mask_zero=True)
    """,
    "models": """
        3 U Scaled(0.5)
        2 U Mixer(4, activation={a})
        3 U UserModel()
        4 N keras.Sequential([{layer}, {layer}])
        1 N functional({layer}, {layer})
        1 N keras.Sequential([{layer}, {layer}, keras.layers.Dropout(0.2, seed=1)])
    """,
    "optimizers": """
        2 keras.optimizers.SGD(0.1)
        4 keras.optimizers.SGD(0.1, momentum=0.9)
        1 keras.optimizers.SGD(0.1, momentum=0.5, nesterov=True, clipnorm=1.0)
        5 keras.optimizers.Adam(0.01)
        1 keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.1, 3, 0.5))
        1 keras.optimizers.AdamW(0.01, weight_decay=0.1)
        1 keras.optimizers.RMSprop(0.01)
        1 keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3)
        1 keras.optimizers.SGD(Decay())
        1 keras.optimizers.SGD(0.1, gradient_accumulation_steps=2)
        1 keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=8.0)
        1 Counting(0.1)
    """,
    "metrics": """
        3 keras.metrics.Mean()
        2 keras.metrics.MeanSquaredError()
        1 keras.metrics.CosineSimilarity()
        1 Largest()
    """,
    "losses": """
        4 keras.losses.MeanSquaredError()
        2 keras.losses.Huber()
        1 keras.losses.CosineSimilarity()
        1 keras.losses.CategoricalCrossentropy(from_logits=True)
        1 keras.losses.MeanAbsolutePercentageError()
        1 keras.losses.MeanSquaredError(reduction="sum")
    """,
    "M": """
        6 {K}({M})
        4 {K}({M}, training={t})
        2 {N}({M}, training={t})
        3 {U}({M})
        2 {U}({M}, training={t})
        1 {K}({K}({M}))
        1 {J}({M}[:, :, None])[:, :, 0]
        1 {E}({I})
        1 ({X} if i % 3 else {K})({M})
        1 functools.reduce(lambda h, layer: layer(h), blocks, {M})
        2 tf.nn.silu({M})
        1 tf.nn.silu({M}, {p})
        1 tf.nn.silu({M}, beta=box.rate)
        1 tf.nn.silu({M}, {S})
        1 tf.nn.silu({W})[:3]
        1 tf.grad_pass_through(tf.round)({M})
        1 tf.grad_pass_through(user_act)({M})
        1 tf.recompute_grad(user_act)({M})
        1 keras.ops.gelu(tf.identity({M}))
        1 keras.ops.matmul({M}, tf.tanh({W}))
        1 keras.activations.get("softplus")({M})
        1 keras.ops.softmax({M} * 1.0, axis=-1)
        1 halved({M})
        1 weighted({M})
        1 doubly({M})
        1 blend({M}, {V}, {p})
        1 owned({M})
        1 through({K}, {M})
        1 user_act({M})
        1 tf.matmul({M}, {X}.kernel)
        1 keras.ops.convert_to_tensor({K}({M}))
        1 keras.layers.Rescaling({p})({M})
        1 keras.layers.Dropout({p}, seed=i)({M}, training=True)
        1 stateless({X}, {M})
        1 keras.ops.cond({S} > 0.0, lambda: {K}({M}), lambda: {M})
        1 graphed({M})
        1 in_thread({K}, {M})
    """,
    "S": """
        4 {C}({M}, {M})
        2 {Q}.result()
        2 sum({K}.losses, tf.constant(0.0))
        1 keras.ops.mean(keras.losses.mean_squared_error({M}, {M}))
        1 keras.ops.sum({X}.kernel)
        1 keras.losses.Huber(delta={p})({M}, {M})
        1 keras.metrics.Mean()({M})
        1 tf.reduce_mean({Y}.moving_mean)
        1 tf.convert_to_tensor({O}.learning_rate)
    """,
    "a": """
        3 "tanh"
        2 "relu"
        2 "silu"
        1 "gelu"
        1 tf.nn.relu
        1 tf.sin
        1 keras.activations.elu
        2 user_act
        1 lambda h: h * box.rate
        1 noted_relu
        1 pool[0].call
        1 None
    """,
    "t": """
        4 True
        2 False
        1 None
        2 i % 3 == 0
        1 bool(box.count % 2)
    """,
    # Changes of one object, in a step or between two.
    "changes": """
        2 {X}.activation = keras.activations.get({a})
        1 {X}.kernel.assign({X}.kernel * 0.9)
        2 {K}.trainable = {t} is True
        2 {K}.trainable = i % 4 != 2
        1 {X}.__dict__['bias'] = None
        1 {X}.kernel.trainable = i % 2 == 0
        1 {X}.kernel.regularizer = keras.regularizers.L2(0.01)
        1 {X}.activity_regularizer = keras.regularizers.L1(0.01)
        1 {X}.__dict__['_kernel'] = keras.Variable({X}.kernel * 0.5)
        1 {X}.set_weights([weight * 0.5 for weight in {X}.get_weights()])
        1 {X}.dtype_policy = 'mixed_bfloat16' if i % 5 == 4 else 'float32'
        2 {Y}.momentum = 0.9 - 0.05 * (i % 5)
        1 {Y}.__dict__.update(epsilon=0.1 * (1 + i % 3))
        1 {Y}.moving_mean.assign({Y}.moving_mean * 0.5)
        1 {Y}.trainable = not {Y}.trainable
        1 {Y}.gamma.assign_add({V} * 0.1)
        2 {Z}.rate = 0.1 * (i % 4)
        1 {Z}.seed_generator.state.assign([i, 7])
        1 {Z}.__dict__['seed_generator'] = keras.random.SeedGenerator(i)
        1 setattr({Z}, 'rate', 0.0 if i % 3 else 0.5)
        2 {U}.factor = 0.1 * (1 + i % 3)
        1 {U}.calls = 0
        1 {U}.factor = tf.constant(0.3)
        1 {K}.call = patched({K}.call)
        1 {K}.__dict__.pop('call', None)
        2 {R}.learning_rate = 0.1 / (1 + i % 3)
        1 {O}.momentum = 0.5 if i % 2 else 0.9
        1 {O}.__dict__.update(beta_1=0.8)
        1 {O}._iterations.assign(0)
        1 {O}._learning_rate.__dict__.update(initial_learning_rate=0.03)
        1 {X}.kernel.constraint = keras.constraints.MaxNorm(0.5)
        1 {O}.clipvalue = 0.5
        1 {R}.learning_rate.assign(0.05)
        1 {Q}.reset_state()
        1 {C}.reduction = 'sum' if i % 4 == 3 else 'mean'
        1 SETTINGS['scale'] = 0.5 if i % 4 else 0.75
        1 SETTINGS['rows'].append(0.05 * i)
        1 SETTINGS.update(rows=[0.3])
        1 keras.config.set_epsilon(1e-2 if i in (5, 6, 9) else 1e-7)
        1 own.assign(own * 0.9)
        1 keras.utils.set_random_seed(i)
        1 {K}.custom = {M}
        1 {K}.note = i
    """,
    # Changes of which object is where.
    "moves": """
        3 net.first, net.second = net.second, net.first
        2 named['a'] = {K}
        2 net.first = {K} if i % 3 else net.second
        1 blocks.append({K}); del blocks[:-3]
        1 blocks.reverse()
        1 blocks[0], blocks[-1] = blocks[-1], blocks[0]
        1 blocks[i % len(blocks)] = {K}
        1 {N}._layers[-1] = {K}
        1 named['a'], named['b'] = named['b'], named['a']
    """,
    "reads": """
        2 [float(value) for value in {K}.losses]
        1 len({K}.trainable_variables)
        1 [tuple(weight.shape) for weight in {K}.trainable_variables]
        1 len({K}.non_trainable_variables)
        1 [metric.name for metric in {N}.metrics]
        1 {K}.trainable
        2 {Q}.result()
        1 float({Q}.result())
        1 {O}.iterations.numpy()
        1 float({O}.learning_rate)
        1 {X}.kernel.numpy()
        1 {Y}.moving_variance
        1 {U}.__dict__.get('calls')
        1 SETTINGS['seen'][-2:]
        1 getattr({K}({M}), '_keras_mask', None) is None
        1 keras.ops.convert_to_numpy({K}({M}))
    """,
    "model_call": """
        3 h = self.first(h)
        2 h = self.rows[0](h)
        2 h = self.rows[self.calls % 2](h)
        2 h = self.norm(h)
        1 h = self.norm(h, training=not training)
        2 h = self.drop(h)
        1 h = tf.tanh(h) * self.factor
        1 h = h * 0.5 if training else h
        1 h = self.drop(h) if self.calls % 3 == 1 else h
        1 self.add_loss(tf.reduce_mean(h) * 0.01)
        1 SETTINGS['seen'].append(self.calls)
        1 self.last = h
        1 h = user_act(h)
        1 h = h + self.first.kernel[:3]
        1 h = tf.nn.silu(h)
        1 h = tf.nn.silu(h, self.factor)
    """,
}


TABLE = parse(WEIGHTED)


def pick(rnd: random.Random, table: str) -> str:
    """Return a template of `table`, by weight."""
    return pick_from(TABLE, rnd, table)
