"""The ops that random programs are made of: templates of expressions by the kind they yield.

A *kind* stands for a dtype and a shape, so that every program is valid by construction:

    M float32[3, 4]   W float32[4, 4]   V float32[4]   S float32[]
    I int32[3], each 0 to 2             B bool[3, 4]   D float32[unknown]
    p a Python float                    k a Python int

`{M}` in a template is a name of that kind or another expression that yields one. A variable may
stand wherever a tensor of its shape may.
"""

import random

WEIGHTED = {
    "M": """
        4 tf.tanh({M})
        2 tf.nn.relu({M})
        3 {M} + {M}
        2 {M} * {V}
        2 {M} - {S}
        2 {M} * {p}
        4 tf.matmul({M}, {W})
        1 {M} @ {W} + {V}
        1 tf.matmul(tf.matmul({M}, {M}, transpose_b=True), {M}) * 0.1
        2 tf.where({B}, {M}, {M})
        1 tf.where({M} > {S}, {M}, {p})
        1 tf.concat([{M}[:, :2], {M}[:, 2:]], 1)
        1 tf.concat([{M}[:1], {M}[1:]], axis=0)
        1 tf.stack([{V}, {V}, {V}])
        1 tf.gather({M}, {I})
        1 tf.transpose(tf.reshape({M}, [4, 3]))
        1 tf.reshape({M}, (-1, 4))
        1 tf.one_hot({I}, 4)
        1 tf.cast({B}, tf.float32)
        1 tf.clip_by_value({M}, -1.0, 1.0)
        1 tf.nn.softmax({M})
        1 tf.nn.bias_add({M}, {V})
        1 tf.reverse({M}, axis=[0])
        1 tf.roll({M}, shift={k}, axis=1)
        1 tf.einsum('bi,ij->bj', {M}, {W})
        1 tf.sort({M}, axis=1)
        1 tf.cumsum({M}, axis=0) * 0.3
        1 tf.tile({V}[None], [3, 1])
        1 tf.pad({M}[:, 1:], [[0, 0], [1, 0]])
        1 tf.math.top_k({M}, k=4).values
        1 tf.zeros([3, 4])
        1 tf.ones_like({M})
        1 tf.fill([3, 4], {S})
        1 tf.stack(tf.unstack({M})[::-1])
        1 tf.concat(tf.split({M}, 2, axis=1), 1)
        1 tf.identity({M})
        1 tf.stop_gradient({M})
        1 tf.nn.leaky_relu({M}, alpha=box.rate)
        1 tf.tensor_scatter_nd_update({M}, [[1]], {V}[None])
        1 tf.maximum({M}, tf.minimum({M}, {p}))
        1 tf.sqrt(tf.abs({M}) + 0.1)
        1 tf.sigmoid({M}) * {M}
        1 tf.nn.silu({M})
        1 tf.nn.silu({M}, {S})
        1 tf.expand_dims({V}, 0) + {M}
        1 tf.square({M}) * 0.2
        1 tf.nn.embedding_lookup({M}, {I})
        1 tf.convert_to_tensor({M})
        1 tf.nn.elu({M}, name='elu')
        1 tf.constant(data[{k} % 16])
        1 -{M}
        1 tf.map_fn(tf.tanh, {M})
    """,
    "W": """
        6 {W}
        1 tf.matmul({M}, {M}, transpose_a=True)
        1 tf.transpose({W})
        1 tf.eye(4)
        1 {W} * {p}
        1 tf.linalg.band_part({W}, 1, 0)
        1 tf.linalg.diag({V})
    """,
    "V": """
        3 tf.reduce_mean({M}, axis=0)
        2 tf.reduce_max({M}, 0)
        2 {V} + {V}
        1 {V} * {p}
        2 tf.tanh({V})
        1 {M}[{k} % 3]
        1 {M}[-1]
        1 tf.linalg.matvec({W}, {V})
        1 tf.nn.softmax({V})
        1 tf.gather({V}, [3, 1, 0, 2])
        1 tf.range(4, dtype=tf.float32) * {S}
        1 tf.zeros([4])
        1 tf.where({V} > 0.0, {V}, tf.zeros_like({V}))
        1 tf.linspace(0.0, 1.0, 4)
        1 tf.cast(tf.range(4), tf.float32) + {V}
        1 tf.squeeze({V}[None], 0)
        1 tf.linalg.diag_part({W})
        1 tf.stack([{S}, {S}, {p}, {S}])
        1 tf.cast(tf.argsort({V}), tf.float32)
    """,
    "S": """
        4 tf.reduce_sum({M}) * 0.1
        2 tf.reduce_mean(tf.square({M}))
        2 tf.reduce_mean({V})
        1 {V}[{k} % 4]
        1 {S} * {S} + {p}
        1 tf.tanh({S} + {p})
        1 tf.reduce_max({D})
        2 tf.reduce_sum({D}) * 0.1
        1 tf.cast(tf.size({D}), tf.float32)
        1 tf.constant({p})
        1 tf.norm({V})
        1 tf.tensordot({V}, {V}, 1)
        1 tf.cast(tf.reduce_sum({I}), tf.float32)
        1 tf.cast(tf.math.count_nonzero({B}), tf.float32)
        1 tf.cast(tf.shape({M})[0], tf.float32)
        1 tf.maximum({S}, {p})
        1 tf.add_n([{S}, {S}])
    """,
    "I": """
        2 tf.cast(tf.argmax({M}, axis=1, output_type=tf.int32) % 3, tf.int32)
        1 tf.range(3)
        1 tf.constant([0, {k} % 3, 1])
        1 tf.math.top_k({V}, k=3).indices % 3
        1 ({I} + {k}) % 3
        1 tf.cast({M}[:, 0] > 0.0, tf.int32)
        1 tf.minimum({I}, 1)
        1 tf.reverse({I}, [0])
    """,
    "B": """
        3 {M} > {p}
        1 {M} <= {M}
        1 tf.logical_not({B})
        1 tf.logical_and({B}, {M} > 0.0)
        1 tf.math.is_finite({M})
    """,
    "D": """
        3 tf.boolean_mask({M}, {B})
        1 tf.unique(tf.round({V})).y
        1 tf.gather_nd({M}, tf.where({B}))
        1 tf.concat([{D}, {V}], 0)
        1 tf.tanh({D})
        1 {D} * {S}
        1 tf.dynamic_partition({V}, [0, 1, 0, 1], 2)[1]
        1 {V}[: int({k}) % 4 + 1]
    """,
    "p": """
        3 0.5
        2 0.25
        1 box.rate
        1 i * 0.1
        1 state['scale']
        1 (0.3 if i % 4 else 0.7)
    """,
    "k": """
        3 1
        2 2
        1 i
        1 box.count
        1 len(log)
        1 i // 3
    """,
    "random": """
        3 M tf.random.normal([3, 4])
        2 M tf.random.uniform([3, 4], seed=7)
        1 M tf.random.normal([3, 4], stddev=box.rate)
        1 M tf.random.truncated_normal([3, 4])
        2 M tf.nn.dropout({M}, rate=0.3)
        1 M tf.random.stateless_normal([3, 4], seed=[i, 2])
        1 M generator.normal([3, 4])
        1 V generator.uniform([4])
        1 V tf.random.shuffle({V})
        1 I tf.random.uniform([3], maxval=3, dtype=tf.int32)
        1 V tf.constant(rng.standard_normal(4), tf.float32)
        1 S tf.constant(rnd.random())
    """,
    "condition": """
        3 tf.reduce_sum({M}) > {p}
        2 {S} > 0.0
        2 tf.reduce_mean({V}) < {S}
        1 tf.reduce_any({M} > 1.0)
        1 float({S}) > 0.1
        1 not bool(tf.reduce_all({B}))
        1 int({I}[0]) == 1
        1 tf.size({D}) > 6
        2 i % 3 == 1
        2 i % 2
        1 i > 6
        1 i in (3, 4, 9)
        2 rnd.random() < 0.4
        1 box.count % 3 == 0
        1 state['turns'] % 2 == 0
        1 state['turns'] > 5 and {S} < 0.2
    """,
    "calm_condition": """
        3 i % 6 == 4
        2 i >= 0
        1 i == 8
        2 tf.reduce_sum(tf.abs({M})) > -1.0
        1 tf.reduce_sum({M}) > 0.0
        1 box.rate > 0.0
    """,
    "read": """
        3 float({S})
        2 {V}.numpy()
        1 {M}.numpy().tolist()
        1 bool(tf.reduce_sum({M}) > 0.0)
        1 int({I}[1])
        1 str({S})
        1 repr({V})
        1 '%.3f' % {S}
        1 np.mean({M})
        1 np.asarray({V}) * 2
        1 [float(t) for t in tf.identity({V})]
        1 {D}.shape.as_list()
        1 len({D})
        1 {M}.shape.as_list()
        1 {D}.numpy().size
        1 {M}.dtype.name
        2 {M}
        1 {D}
        1 {S} + 1.0
        1 max(float({S}), 0.1)
        1 ({S} > 0.0).numpy()
    """,
    # An op error where `bad` holds, which is a Python bool.
    "failing": """
        3 V tf.gather({V}, tf.constant([0, 1, 9 if bad else 2, 3]))
        2 M tf.debugging.check_numerics({M} / (0.0 if bad else 1.0), 'not a number')
        1 V tf.reshape({V}, tf.constant([3 if bad else 4]))
        1 M tf.gather({M}, {I} + (5 if bad else 0))
        1 S tf.gather_nd({V}, [7 if bad else 3])
        1 W tf.linalg.inv(tf.eye(4) * (0.0 if bad else 2.0))
    """,
}
LEAVES = {"M": "x", "V": "b", "S": "c", "W": "w", "I": "idx", "B": "x > 0.0", "D": "d0"}


Table = dict[str, list[tuple[int, str]]]


def parse(weighted: dict[str, str]) -> Table:
    """Return the templates of each kind with their weights; a line has one."""
    lines = {kind: text.strip().splitlines() for kind, text in weighted.items()}
    rows = {kind: [line.strip().split(" ", 1) for line in lines[kind]] for kind in lines}
    return {kind: [(int(weight), text) for weight, text in rows[kind]] for kind in rows}


def pick_from(tables: Table, rnd: random.Random, table: str) -> str:
    """Return a template of one of the tables, by weight."""
    rows = tables[table]
    return rnd.choices([row[1] for row in rows], [row[0] for row in rows])[0]


TABLE = parse(WEIGHTED)


def pick(rnd: random.Random, table: str) -> str:
    """Return a template of `table`, by weight."""
    return pick_from(TABLE, rnd, table)
