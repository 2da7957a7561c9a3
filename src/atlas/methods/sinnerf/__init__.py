"""SinNeRF: a radiance field of a scene from a single image with depth.

D. Xu, Y. Jiang, P. Wang, Z. Fan, H. Shi, Z. Wang, *SinNeRF: Training Neural Radiance Fields on Complex Scenes from a Single
Image*, ECCV 2022, arXiv 2204.00928.

Unseen poses get pseudo-labels. Geometry: the reference's depth, warped there. Semantics: a discriminator of patches for texture,
and the features of a frozen ViT for the whole.

>>> from atlas.methods.sinnerf import LossWeights, OrbitGaussian, RGBDView, SinNeRF, Stage, make_field
>>> model = SinNeRF(make_field("vm"), bounds=[[-1, -1, -1], [1, 1, 1]], near=2, far=6, pose_prior=OrbitGaussian(10),
...                 stages=[Stage(steps=200, stride=2, lr=0.03, weights=LossWeights())], white_background=True)
"""

from typing import TYPE_CHECKING

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "bounds": ["Bounded", "Box", "Frustum"],
        "cameras": [
            "Camera",
            "RGBDView",
            "all_rays",
            "depth_along_axis",
            "depth_from_disparity",
            "disparity_from_depth",
            "pixel_rays",
        ],
        "discriminator": ["PatchDiscriminator", "diff_augment", "hinge_discriminator", "hinge_generator"],
        "encoders": ["Descriptor", "MissingWeightsError", "SemanticEncoder", "TimmDino"],
        "fields": [
            "GridField",
            "HashField",
            "NeRFNetwork",
            "RadianceField",
            "VectorMatrixField",
            "make_field",
            "positional_encoding",
        ],
        "losses": ["LossWeights", "Stage", "smoothness"],
        "model": ["FitResult", "RenderResult", "SinNeRF"],
        "objective": ["Shape"],
        "orbit": ["orbit_cameras", "save_animation", "sway_cameras"],
        "poses": ["OrbitGaussian", "PoseList", "PosePrior", "TranslationGaussian", "strided_patch"],
        "rendering": [
            "CoarseFine",
            "Composite",
            "Sampler",
            "composite",
            "render_levels",
            "render_rays",
            "sample_pdf",
            "sample_stratified",
        ],
        "supervision": ["Budget"],
        "tiny_dino": ["Distillation", "SelfDistiller", "TinyDino"],
        "trainer": ["Options"],
        "warping": ["WarpResult", "dibr", "fill_cracks", "fill_nearest", "forward_warp"],
    },
)

if TYPE_CHECKING:
    from atlas.methods.sinnerf.bounds import Bounded as Bounded
    from atlas.methods.sinnerf.bounds import Box as Box
    from atlas.methods.sinnerf.bounds import Frustum as Frustum
    from atlas.methods.sinnerf.cameras import Camera as Camera
    from atlas.methods.sinnerf.cameras import RGBDView as RGBDView
    from atlas.methods.sinnerf.cameras import all_rays as all_rays
    from atlas.methods.sinnerf.cameras import depth_along_axis as depth_along_axis
    from atlas.methods.sinnerf.cameras import depth_from_disparity as depth_from_disparity
    from atlas.methods.sinnerf.cameras import disparity_from_depth as disparity_from_depth
    from atlas.methods.sinnerf.cameras import pixel_rays as pixel_rays
    from atlas.methods.sinnerf.discriminator import PatchDiscriminator as PatchDiscriminator
    from atlas.methods.sinnerf.discriminator import diff_augment as diff_augment
    from atlas.methods.sinnerf.discriminator import hinge_discriminator as hinge_discriminator
    from atlas.methods.sinnerf.discriminator import hinge_generator as hinge_generator
    from atlas.methods.sinnerf.encoders import Descriptor as Descriptor
    from atlas.methods.sinnerf.encoders import MissingWeightsError as MissingWeightsError
    from atlas.methods.sinnerf.encoders import SemanticEncoder as SemanticEncoder
    from atlas.methods.sinnerf.encoders import TimmDino as TimmDino
    from atlas.methods.sinnerf.fields import GridField as GridField
    from atlas.methods.sinnerf.fields import HashField as HashField
    from atlas.methods.sinnerf.fields import NeRFNetwork as NeRFNetwork
    from atlas.methods.sinnerf.fields import RadianceField as RadianceField
    from atlas.methods.sinnerf.fields import VectorMatrixField as VectorMatrixField
    from atlas.methods.sinnerf.fields import make_field as make_field
    from atlas.methods.sinnerf.fields import positional_encoding as positional_encoding
    from atlas.methods.sinnerf.losses import LossWeights as LossWeights
    from atlas.methods.sinnerf.losses import Stage as Stage
    from atlas.methods.sinnerf.losses import smoothness as smoothness
    from atlas.methods.sinnerf.model import FitResult as FitResult
    from atlas.methods.sinnerf.model import RenderResult as RenderResult
    from atlas.methods.sinnerf.model import SinNeRF as SinNeRF
    from atlas.methods.sinnerf.objective import Shape as Shape
    from atlas.methods.sinnerf.orbit import orbit_cameras as orbit_cameras
    from atlas.methods.sinnerf.orbit import save_animation as save_animation
    from atlas.methods.sinnerf.orbit import sway_cameras as sway_cameras
    from atlas.methods.sinnerf.poses import OrbitGaussian as OrbitGaussian
    from atlas.methods.sinnerf.poses import PoseList as PoseList
    from atlas.methods.sinnerf.poses import PosePrior as PosePrior
    from atlas.methods.sinnerf.poses import TranslationGaussian as TranslationGaussian
    from atlas.methods.sinnerf.poses import strided_patch as strided_patch
    from atlas.methods.sinnerf.rendering import CoarseFine as CoarseFine
    from atlas.methods.sinnerf.rendering import Composite as Composite
    from atlas.methods.sinnerf.rendering import Sampler as Sampler
    from atlas.methods.sinnerf.rendering import composite as composite
    from atlas.methods.sinnerf.rendering import render_levels as render_levels
    from atlas.methods.sinnerf.rendering import render_rays as render_rays
    from atlas.methods.sinnerf.rendering import sample_pdf as sample_pdf
    from atlas.methods.sinnerf.rendering import sample_stratified as sample_stratified
    from atlas.methods.sinnerf.supervision import Budget as Budget
    from atlas.methods.sinnerf.tiny_dino import Distillation as Distillation
    from atlas.methods.sinnerf.tiny_dino import SelfDistiller as SelfDistiller
    from atlas.methods.sinnerf.tiny_dino import TinyDino as TinyDino
    from atlas.methods.sinnerf.trainer import Options as Options
    from atlas.methods.sinnerf.warping import WarpResult as WarpResult
    from atlas.methods.sinnerf.warping import dibr as dibr
    from atlas.methods.sinnerf.warping import fill_cracks as fill_cracks
    from atlas.methods.sinnerf.warping import fill_nearest as fill_nearest
    from atlas.methods.sinnerf.warping import forward_warp as forward_warp
