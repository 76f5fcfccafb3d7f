"""The networks that are timed, by name: those of the recipes, as they were when they were first timed."""

from dataclasses import replace

from ddpm_core.diffusion.reverse import ReverseConfig
from ddpm_core.diffusion.schedule import ScheduleConfig
from pipelines.recipes.config import Recipe
from pipelines.recipes.recipes import make


def timed(net: str) -> Recipe:
    """Its recipe before a sweep changed it: of another one speeds could not be held against those recorded."""
    recipe = replace(make(net), schedule=ScheduleConfig(), reverse=ReverseConfig())
    if net != "mnist":
        return recipe
    return replace(recipe, unet=replace(recipe.unet, base_channels=16, channel_multipliers=(1, 2, 4)))
