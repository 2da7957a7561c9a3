"""Wrong types in the calls that search, sparsify, amalgamate, federate, fit scenes and step by rules: one line that says what
would be right, before anything has changed. ``tests/nn/test_wrong_types.py`` has the other methods.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.refusals import Refusals, check_refusal
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from atlas import l2o
from atlas.methods import as_vit, optimizer_amalgamation, sinnerf, sparse_robust, split_mix, symbolic_l2o, uvc, vfds
from atlas.nn.attacks import PGD

IMAGES, LABELS = torch.rand(4, 1, 8, 8), torch.arange(4)
BYTES = (IMAGES * 255).byte()
TEXT = "8,2,3|4,1,2|4,1,4|4,1,6|32"
TOPOLOGY = as_vit.Topology((4, 2, 2, 2), (2, 1, 1, 1), (2, 2, 2, 2), 16)
SPACE = as_vit.SearchSpace.official()
POOL = optimizer_amalgamation.make_pool("small")
CAMERA = sinnerf.Camera(np.array([[8.0, 0, 3.5], [0, 8, 3.5], [0, 0, 1]]), np.eye(4), 8, 8)
COLOURS, DEPTH = np.full((8, 8, 3), 0.5, dtype=np.float32), np.full((8, 8), 2.0)
OTHER = nn.Linear(8, 3)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 4))


def measured(*_: Any) -> as_vit.Measures:
    return as_vit.Measures(1.0, 1.0)


def spec(images: Any = IMAGES, **options: Any) -> as_vit.MeasureSpec:
    return as_vit.MeasureSpec(images=images, **{"repeats": 1, "points": 4, **options})


def measure(make: Any = net, how: Any = None, gen: Any = None) -> object:
    return as_vit.measure(make, spec() if how is None else how, generator() if gen is None else gen)


def search(space: Any = SPACE, score: Any = measured, steps: Any = 2, **options: Any) -> object:
    return as_vit.reinforce(space, score, steps, **{"generator": generator(), "progress": False, **options})


def bird(model: Any = None, optimizer: Any = None, **options: Any) -> object:
    model = nn.Linear(8, 3) if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1) if optimizer is None else optimizer
    return sparse_robust.FlyingBird(model, optimizer, **{"density": 0.2, "total_steps": 10, "interval": 2, **options})


def ticket(make: Any = None, train: Any = lambda model, optimizer: None, sparsity: Any = 0.5, epochs: Any = 1) -> object:
    make = make or (lambda model: torch.optim.SGD(model.parameters(), lr=0.1))
    return sparse_robust.robust_bird(net(), make, train, sparsity, epochs, progress=False)


def snip(data: Any) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return sparse_robust.score_masks(net(), 0.5, "snip", data)


def problem(data: Any = (IMAGES, LABELS), **options: Any) -> l2o.Optimizee:
    given = {"module": net(), "loss_fn": functional.cross_entropy, "batch_size": 2, **options}
    return l2o.module_optimizee(given.pop("module"), given.pop("loss_fn"), data, **given)


def amalgamate(what: Any = None, pool: Any = POOL, **options: Any) -> object:
    given = {"gen": generator(), "progress": False, "method": "mean", **options}
    return optimizer_amalgamation.amalgamate(problem() if what is None else what, pool, **given)


def federated(clients: Any, **options: Any) -> object:
    trainer = split_mix.FedTrainer("split-mix", split_mix.MLP, **{"rounds": 1, "batch_size": 4, **options})
    return trainer.fit(clients, progress=False)


def client(budget: Any = 0.5) -> split_mix.Client:
    return split_mix.Client(torch.rand(8, 64), torch.arange(8) % 2, budget)


def scene(**options: Any) -> sinnerf.SinNeRF:
    stages = [sinnerf.Stage(1, 1, 0.01, sinnerf.LossWeights())]
    given = {"bounds": [[-4] * 3, [4] * 3], "near": 1, "far": 4, "pose_prior": sinnerf.OrbitGaussian(10), "stages": stages}
    given |= {"field": sinnerf.make_field("vm", resolution=4), **options}
    return sinnerf.SinNeRF(given.pop("field"), **given)


def rule(rule: Any = "-g_0", **options: Any) -> object:
    return symbolic_l2o.SymbolicOptimizer(OTHER.parameters(), rule, **options)


def equation(policy: Any = POOL[0], problems: Any = None, **options: Any) -> object:
    given = {"runs": 2, "steps": 3, "backend": "lstsq", "progress": False, **options}
    return symbolic_l2o.distill(policy, problem() if problems is None else problems, **given)


WRONG: Refusals = {
    "as-vit, text": (
        lambda: as_vit.build(TEXT),
        r"topology is a str; a Topology, such as Topology.parse\(text\)\[0\]",
    ),
    "as-vit, count": (lambda: as_vit.count(TEXT), "topology is a str; a Topology"),
    "as-vit, width": (lambda: as_vit.build(TOPOLOGY, width="8"), "width must be a whole number, not '8'"),
    "as-vit, depths": (lambda: as_vit.build(TOPOLOGY, depths=2), "depths is 2; a sequence of 4 whole numbers is needed"),
    "as-vit, kernels": (lambda: as_vit.Topology("4222", (2, 1, 1, 1), (2,) * 4, 16), "kernels is '4222'; a sequence of 4"),
    "as-vit, parse": (lambda: as_vit.Topology.parse(None), "text is a NoneType; a string such as"),
    "as-vit, space": (lambda: as_vit.SearchSpace(["K1"]), "groups is a list; a mapping of names to choices is needed"),
    "as-vit, group": (lambda: as_vit.SearchSpace({**SPACE.groups, "H": 16}), "group H is 16; a sequence of positive whole"),
    "as-vit, images": (lambda: spec("a.png"), "images is a str; a tensor or a NumPy array is needed"),
    "as-vit, bytes": (lambda: spec(BYTES), "images is torch.uint8; a floating-point tensor is needed"),
    "as-vit, three axes": (lambda: spec(IMAGES[:, 0]), r"images must be \(n, channels, height, width\), not \(4, 8, 8\)"),
    "as-vit, repeats": (lambda: spec(repeats="5"), "repeats must be a whole number, not '5'"),
    "as-vit, a network": (lambda: measure(net()), "make_model is a Sequential; a function that makes it anew is needed"),
    "as-vit, a name": (lambda: measure("deit"), "make_model is a str; a function that makes a network is needed"),
    "as-vit, made": (lambda: measure(lambda: "deit"), "what make_model returns is a str; an nn.Module is needed"),
    "as-vit, no spec": (lambda: measure(how=IMAGES), "spec is a Tensor; a MeasureSpec is needed"),
    "as-vit, seed": (lambda: measure(gen=1), "generator is a int; a torch.Generator is needed"),
    "as-vit, scorer": (lambda: as_vit.Scorer(IMAGES, seed=0), "spec is a Tensor; a MeasureSpec is needed"),
    "as-vit, scored": (lambda: as_vit.Scorer(spec(), seed=0)(TEXT), "topology is a str; a Topology"),
    "as-vit, official": (lambda: search("official"), r"space is a str; a SearchSpace, such as SearchSpace.official\(\), is"),
    "as-vit, score": (lambda: search(score="ntk"), "score is a str; a function of a topology"),
    "as-vit, score's": (
        lambda: search(score=lambda topology: 1.0),
        r"what the score returns is a float; Measures\(length",
    ),
    "as-vit, trials": (lambda: search(steps="2"), "steps must be a whole number, not '2'"),
    "as-vit, rate": (lambda: search(lr="0.1"), "lr must be a number, not '0.1'"),
    "as-vit, no generator": (lambda: search(generator=None), "generator is a NoneType; a torch.Generator is needed"),
    "as-vit, random": (lambda: as_vit.random_search(SPACE, measured, generator=0), "generator is a int; a torch.Generator"),
    "as-vit, grow": (lambda: as_vit.grow(TEXT, measured), "topology is a str; a Topology"),
    "as-vit, grow by": (lambda: as_vit.grow(TOPOLOGY, "rank"), "score is a str; a function of topology, depths and width"),
    "as-vit, target": (lambda: as_vit.grow(TOPOLOGY, measured, target="80M"), "target must be a number, not '80M'"),
    "as-vit, ratios": (lambda: as_vit.grow(TOPOLOGY, measured, ratios=0.1), "ratios is 0.1; a sequence of ratios is needed"),
    "as-vit, circle": (
        lambda: as_vit.great_circle(32, generator=generator()),
        r"shape is 32; a shape \(channels",
    ),
    "as-vit, curve": (lambda: as_vit.length_distortion("net", IMAGES), "fn is a str; a module or function of images"),
    "as-vit, no circle": (lambda: as_vit.length_distortion(net(), IMAGES), "circle is a Tensor; a Circle, as great_circle"),
    "as-vit, kernel": (
        lambda: as_vit.ntk_gram(net(), BYTES),
        "x is torch.uint8, and the model's weights are torch.float32",
    ),
    "as-vit, kernel's net": (lambda: as_vit.ntk_gram("net", IMAGES), "model is a str; an nn.Module is needed"),
    "as-vit, gram": (lambda: as_vit.condition_number(torch.ones(3)), r"gram must be a square matrix \(n, n\), not \(3,\)"),
    "as-vit, tokens": (lambda: as_vit.ProgressiveTokenizer(net()), "model is a Sequential; a HierarchicalViT, as build makes it"),
    "as-vit, synflow": (lambda: as_vit.synflow(net(), 8), r"shape is 8; a shape \(channels, height, width\) is needed"),
    "as-vit, gradient": (lambda: as_vit.grad_norm(net(), IMAGES, LABELS.float()), r"labels is torch.float32 of shape \(4,\)"),
    "as-vit, τ": (lambda: as_vit.kendall_tau("abc", [1, 2, 3]), "a rank correlation needs a sequence of numbers, not 'abc'"),
    "as-vit, parameters": (lambda: as_vit.width_for(TOPOLOGY, "1M", depths=(1,) * 4), "params must be a number, not '1M'"),
    "bird, model": (lambda: sparse_robust.FlyingBird("m", None, total_steps=2), "model is a str; an nn.Module is needed"),
    "bird, optimizer": (lambda: bird(optimizer="sgd"), "optimizer is a str; a torch.optim.Optimizer is needed"),
    "bird, density": (lambda: bird(density="0.2"), "density must be a number, not '0.2'"),
    "bird, steps": (lambda: bird(total_steps="10"), "total_steps must be a whole number, not '10'"),
    "bird, interval": (lambda: bird(interval=2.5), "interval must be a whole number, not 2.5"),
    "bird, rate": (lambda: bird(rate="0.5"), "rate must be a number, not '0.5'"),
    "bird, init": (lambda: bird(init=["weight"]), "masks is a list; a mapping of names of parameters to masks is needed"),
    "bird, mask": (lambda: bird(init={"weight": "all"}), "the mask of weight is a str; a tensor or a NumPy array is needed"),
    "bird, adaptive": (lambda: bird(adaptive=True), "adaptive is a bool; a FlyingBirdPlus is needed"),
    "bird, seed": (lambda: bird(generator=0), "generator is a int; a torch.Generator is needed"),
    "early bird": (lambda: sparse_robust.EarlyBird("0.9"), "sparsity must be a number, not '0.9'"),
    "early bird, model": (lambda: sparse_robust.EarlyBird(0.5).update("net"), "model is a str; an nn.Module is needed"),
    "robust bird, optimizer": (
        lambda: ticket(torch.optim.SGD(OTHER.parameters(), lr=0.1)),
        "make_optimizer is a SGD; a function that makes an optimizer of a model is needed",
    ),
    "robust bird, made": (lambda: ticket(lambda model: "sgd"), "what make_optimizer returns is a str; a torch.optim.Optimizer"),
    "robust bird, other": (lambda: ticket(lambda model: torch.optim.SGD(OTHER.parameters())), "is it another model's?"),
    "robust bird, training": (lambda: ticket(train="epoch"), "train_epoch is a str; a function of model and optimizer is needed"),
    "robust bird, sparsity": (lambda: ticket(sparsity="0.5"), "sparsity must be a number, not '0.5'"),
    "robust bird, epochs": (lambda: ticket(epochs="1"), "max_epochs must be a whole number, not '1'"),
    "scores, text": (lambda: snip("data"), r"data is a str; give a pair \(inputs, labels\)"),
    "scores, bytes": (lambda: snip((BYTES, LABELS)), "data's inputs is torch.uint8, and the model's weights are torch.float32"),
    "scores, labels": (lambda: snip((IMAGES, LABELS.float())), r"data's labels are torch.float32; class numbers \(4,\)"),
    "costs": (lambda: sparse_robust.flops("net", (1, 8, 8)), "model is a str; an nn.Module is needed"),
    "report": (
        lambda: sparse_robust.robust_report("a", [1], [1], 1),
        "val_ra is 'a'; a sequence of numbers, one for",
    ),
    "attack, radius": (lambda: PGD("8/255", 0.1, 1), "eps must be a number, not '8/255'"),
    "optimizee, module": (lambda: problem(module="net"), "module is a str; an nn.Module is needed"),
    "optimizee, loss": (lambda: problem(loss_fn="ce"), "loss_fn is a str; a function of outputs and labels is needed"),
    "optimizee, data": (lambda: problem("train.csv"), r"the split train is a str; give a pair \(inputs, labels\)"),
    "optimizee, bytes": (lambda: problem((BYTES, LABELS)), "the split train's inputs is torch.uint8, and the model's weights"),
    "optimizee, doubles": (lambda: problem((IMAGES.double(), LABELS)), "bring the split train's inputs to torch.float32"),
    "optimizee, labels": (lambda: problem((IMAGES, LABELS.float())), r"labels are torch.float32; class numbers \(4,\)"),
    "optimizee, batch": (lambda: problem(batch_size="2"), "batch_size must be a whole number, not '2'"),
    "optimizee, init": (lambda: problem(init=0.1), "init is a float; default, glorot or normal:σ is needed"),
    "optimizee, σ": (lambda: problem(init="normal:a"), "must be normal: and a standard deviation"),
    "amalgamate, problem": (lambda: amalgamate("mlp"), "problem is a str; an Optimizee, such as module_optimizee"),
    "amalgamate, pool": (
        lambda: amalgamate(pool="small"),
        r"pool is 'small'; a sequence of policies, such as make_pool",
    ),
    "amalgamate, names": (lambda: amalgamate(pool=["adam_ema", "sgd_ema"]), r"pool\[0\] is a str; a Policy, such as"),
    "amalgamate, torch's": (lambda: amalgamate(pool=[torch.optim.Adam] * 2), r"pool\[0\] is a class Adam; a Policy"),
    "amalgamate, student": (lambda: amalgamate(student="lstm"), "student is a str; a Policy"),
    "amalgamate, schedule": (
        lambda: amalgamate(schedule="paper"),
        r"schedule is a str; a Curriculum, such as Curriculum",
    ),
    "amalgamate, noise": (lambda: amalgamate(noise=0.1), "noise is a float; a RandomWeightNoise or AdversarialWeightNoise"),
    "amalgamate, seed": (lambda: amalgamate(gen=0), "gen is a int; a torch.Generator is needed"),
    "amalgamate, replicates": (lambda: amalgamate(replicates="2"), "replicates must be a whole number, not '2'"),
    "amalgamate, trainer": (lambda: amalgamate(trainer={"instances": 1}), r"TrainerConfig\(…\) is needed, not a dict"),
    "amalgamate, choice": (lambda: amalgamate(method="choice", choice="c"), "choice is a str; a ChoicePolicy or ChoiceConfig"),
    "choice": (lambda: optimizer_amalgamation.train_choice(problem(), POOL, "paper"), "cfg is a str; a ChoiceConfig is needed"),
    "teacher": (lambda: optimizer_amalgamation.teacher("adam_ema", "0.1"), "lr must be a number, not '0.1'"),
    "pool": (lambda: optimizer_amalgamation.make_pool("small", [0.1]), "lrs is a list; a mapping of teachers to step sizes"),
    "pool, names": (lambda: optimizer_amalgamation.make_pool("small", {"adam": 0.1}), "there is no teacher adam; choose from"),
    "step size": (lambda: optimizer_amalgamation.tune_lr("adam", problem()), "policy_factory is a str; a class of teachers"),
    "step sizes": (
        lambda: optimizer_amalgamation.tune_lr(optimizer_amalgamation.TEACHERS["sgd_ema"], problem(), grid=0.1),
        "grid is 0.1; a sequence of step sizes is needed",
    ),
    "student's path": (
        lambda: optimizer_amalgamation.AmalgamatedOptimizer(OTHER.parameters(), "student.safetensors"),
        "student is a str; a Policy, such as",
    ),
    "no student": (lambda: optimizer_amalgamation.load("none.safetensors"), "none.safetensors cannot be read as safetensors"),
    "learned": (lambda: l2o.LearnedOptimizer(OTHER.parameters(), "adam"), "policy is a str; a Policy, such as Adam"),
    "meta-training": (lambda: l2o.meta_train(POOL[0], "q", l2o.MetaConfig(), generator()), "problem is a str; an Optimizee"),
    "client, text": (lambda: client("0.5"), "a client's budget must be a number, not '0.5'"),
    "client, none": (lambda: client(None), "a client's budget must be a number, not None"),
    "client, many": (lambda: client([0.5, 1.0]), r"a client's budget must be a number, not \[0.5, 1.0\]"),
    "client, array": (lambda: client(np.ones(2)), r"a client's budget must be a number, not \(2,\) of them"),
    "one client": (lambda: federated(client()), "clients is a Client; a list of clients is needed"),
    "federation, rate": (lambda: federated([client()], lr="0.1"), "lr must be a number, not '0.1'"),
    "federation, atom": (lambda: federated([client()], atom="0.1"), "atom must be a number, not '0.1'"),
    "federation, widths": (lambda: federated([client()], widths=0.5), "widths is 0.5; a sequence of widths is needed"),
    "federation, norm": (lambda: federated([client()], norm="bn"), "norm is a str; a NormSpec is needed"),
    "federation, attack": (lambda: federated([client()], adversary=True), "adversary is a bool; a PGD is needed"),
    "federation, schedule": (lambda: federated([client()], schedule=3), "constant, cosine or a list of rounds, not 3"),
    "budgets": (lambda: split_mix.budgets([8, 4], 4), "the specification of budgets is a list; text such as 8-4-2-1"),
    "width": (lambda: split_mix.SplitMix(split_mix.MLP, atom=0.5).customize("0.5"), "width must be a number, not '0.5'"),
    "classes": (lambda: split_mix.partition_by_class("abc", 4, 2, seed=0), r"labels must be the class of every sample \(n,\)"),
    "camera": (lambda: sinnerf.Camera("K", np.eye(4), 8, 8), "K is a str; an array of numbers is needed"),
    "camera, size": (lambda: sinnerf.Camera(CAMERA.K, np.eye(4), 8.5, 8), "height must be a whole number, not 8.5"),
    "view, file": (lambda: sinnerf.RGBDView("a.png", DEPTH, CAMERA), "rgb is a str; an array of numbers is needed"),
    "view, depth": (lambda: sinnerf.RGBDView(COLOURS, "d.png", CAMERA), "depth is a str; an array of numbers is needed"),
    "view, camera": (lambda: sinnerf.RGBDView(COLOURS, DEPTH, np.eye(4)), "camera is a ndarray; a Camera is needed"),
    "scene, field": (lambda: scene(field="vm"), r"field is a str; a radiance field, such as make_field\('vm'\), is needed"),
    "scene, near": (lambda: scene(near="1"), "near must be a number, not '1'"),
    "scene, box": (lambda: scene(bounds="box"), "bounds is a str; an array of numbers is needed"),
    "scene, prior": (lambda: scene(pose_prior=10), r"pose_prior is a int; a prior of poses, such as OrbitGaussian\(10\), is"),
    "scene, stage": (lambda: scene(stages=sinnerf.Stage(1, 1, 0.01, sinnerf.LossWeights())), "stages is one Stage; a sequence"),
    "scene, weights": (lambda: scene(stages=[(1, 1, 0.01, {"rgb": 1})]), r"weights is a dict; LossWeights\(…\) is needed"),
    "scene, sampler": (lambda: scene(sampler=64), r"sampler is a int; Sampler\(…\) is needed"),
    "scene, options": (lambda: scene(options={"a": 1}), r"options is a dict; Options\(…\) is needed"),
    "scene, photo": (lambda: scene().fit(COLOURS), r"view is a ndarray; an RGBDView\(rgb, depth, camera\) is needed"),
    "scene, pose": (lambda: scene().render(np.eye(4)), "camera is a ndarray; a Camera is needed"),
    "film": (lambda: sinnerf.save_animation("a.gif", ["a.png"]), "an image must be floating-point numbers"),
    "scene, degrees": (lambda: sinnerf.OrbitGaussian("10"), "degrees is a str; a number, or a tuple of one per axis, is needed"),
    "scene, poses": (lambda: sinnerf.PoseList(3), "poses is 3; a sequence of poses"),
    "rule, network": (lambda: symbolic_l2o.SymbolicOptimizer(OTHER, "-g_0"), "params is a Linear; its parameters are needed"),
    "rule": (lambda: rule(3), "rule is a int; an expression is needed: text, a Rule, a file"),
    "rule, rate": (lambda: rule(lr="0.1"), "lr must be a number, not '0.1'"),
    "rule, features": (lambda: rule(features=3), "features is 3; a sequence of names of features is needed"),
    "rule, β": (lambda: rule(betas=0.9), "betas is 0.9; a pair of decay rates is needed"),
    "rule, lags": (lambda: rule(lags=2.5), "lags must be a whole number, not 2.5"),
    "equation, policy": (lambda: equation("adam"), "policy is a str; a Policy, such as"),
    "equation, problem": (lambda: equation(problems="q"), "problem 0 is a str; an Optimizee"),
    "equation, runs": (lambda: equation(runs="2"), "runs must be a whole number, not '2'"),
    "equation, rows": (lambda: symbolic_l2o.distill_records("rows.npz", ["m"], 2), "records is a str; Records, as record"),
    "tuning": (
        lambda: symbolic_l2o.meta_tune("-g_0", problem(), l2o.MetaConfig(), generator()),
        "rule is a str; a Rule",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_one_line_that_says_what_would_be_right(name: str) -> None:
    check_refusal(*WRONG[name])


@pytest.mark.parametrize("init", ["igq", {"weight": torch.ones(3, 8, dtype=torch.bool).triu()}])
def test_a_bird_refuses_another_models_optimizer_before_anything_changes(init: Any) -> None:
    model, random = nn.Linear(8, 3), generator()
    before, drawn = model.weight.clone(), random.get_state()
    optimizer = torch.optim.SGD(OTHER.parameters(), lr=0.1)
    for make in (
        lambda: bird(model, optimizer, init=init, generator=random),
        lambda: sparse_robust.SparseTraining(model, optimizer, {"weight": torch.zeros(3, 8)}),
    ):
        with pytest.raises(ValueError, match=r"is it another model's\? make it of model\.parameters\(\)"):
            make()
    assert torch.equal(model.weight, before)
    assert torch.equal(random.get_state(), drawn)


def test_a_bird_refuses_an_optimizer_that_leaves_a_weight_out() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model[1].parameters(), lr=0.1)
    before = model[0].weight.clone()
    with pytest.raises(ValueError, match=r"the optimizer does not step 0\.weight"):
        bird(model, optimizer)
    assert torch.equal(model[0].weight, before)
    masks = {"1.weight": torch.ones(3, 8, dtype=torch.bool)}
    assert bird(model, optimizer, init=masks) is not None  # what is not masked may stay as it is
    assert sparse_robust.SparseTraining(model, optimizer, {**masks, "0.weight": torch.ones(8, 8)}).density == 1  # frozen layers


FORMS: dict[str, Any] = {
    "tensors": (IMAGES, LABELS),
    "arrays": (IMAGES.numpy(), LABELS.numpy()),
    "dataset": TensorDataset(IMAGES, LABELS),
    "loader": DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4),
}


@pytest.mark.parametrize("form", FORMS)
def test_data_in_any_form_give_the_same_numbers(form: str) -> None:
    data = FORMS[form]
    for name, mask in snip((IMAGES, LABELS)).items():
        assert torch.equal(snip(data)[name], mask)
    split = problem(data).data["train"]  # type: ignore[attr-defined]
    assert torch.equal(split[0], IMAGES)
    assert torch.equal(split[1], LABELS)
    named = problem({"train": data, "val": data})
    theta = named.init(2, generator())
    assert torch.equal(named.evaluate(theta)["loss"], problem({"val": (IMAGES, LABELS), "train": data}).evaluate(theta)["loss"])


def test_arrays_are_taken_where_tensors_are() -> None:
    model = net()
    assert torch.equal(as_vit.ntk_gram(model, IMAGES.numpy()), gram := as_vit.ntk_gram(model, IMAGES))
    assert as_vit.condition_number(gram.numpy()) == as_vit.condition_number(gram)
    assert as_vit.grad_norm(model, IMAGES.numpy(), LABELS.numpy()) == as_vit.grad_norm(model, IMAGES, LABELS)
    assert measure(how=spec(IMAGES.numpy())) == measure(how=spec(IMAGES))
    circle = as_vit.great_circle((1, 8, 8), 4, generator=generator())
    bent = [
        as_vit.extrinsic_curvature(lambda x: x.flatten(1).square(), *arrays)
        for arrays in ((circle.basis, circle.theta), (circle.basis.numpy(), circle.theta.numpy()))
    ]
    assert torch.equal(*bent)
    masks = sparse_robust.random_masks(model, 0.5, generator=generator())
    taken = sparse_robust.SparseTraining(
        model, torch.optim.SGD(model.parameters(), lr=0.1), {name: mask.numpy() for name, mask in masks.items()}
    )
    assert all(torch.equal(taken.masks[name], mask) for name, mask in masks.items())
    seen = sinnerf.RGBDView(torch.from_numpy(COLOURS).requires_grad_(), torch.from_numpy(DEPTH), CAMERA)
    assert np.array_equal(seen.rgb, COLOURS)
    assert np.array_equal(seen.depth, DEPTH)


def test_what_scores_gates_and_norms_read_may_be_arrays_and_loaders() -> None:
    vit = VisionTransformer(img_size=8, patch_size=4, in_chans=1, num_classes=4, embed_dim=16, depth=2, num_heads=2)
    scores = [uvc.taylor_scores(vit, data, functional.cross_entropy) for data in FORMS.values()]
    assert all(torch.equal(score.neurons, scores[0].neurons) for score in scores)
    gru, streams, done = vfds.SelectiveGRU(n_features=3, hidden=4, n_outputs=2), torch.rand(2, 5, 3), torch.zeros(2, 5).long()
    rollout = gru(streams, gates="threshold")
    totals = [
        vfds.selection_loss(rollout, y, cost=cost, lam=0.1).total
        for y, cost in ((done, torch.ones(3)), (done.numpy(), np.ones(3)))
    ]
    assert torch.equal(*totals)
    spec = split_mix.NormSpec(stats="batch")
    nets = [
        split_mix.post_statistics(split_mix.MLP(1.0, norm=spec), batches, 1)
        for batches in (
            [IMAGES.flatten(1)[:, :64]],
            [IMAGES.flatten(1).numpy()],
            DataLoader(TensorDataset(IMAGES.flatten(1), LABELS), 4),
        )
    ]
    assert all(not net.training for net in nets)
    with pytest.raises(TypeError, match=r"images\[0\] is a str; a tensor or a NumPy array is needed"):
        sinnerf.SelfDistiller(["a.png"])
