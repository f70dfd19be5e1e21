"""Imagen (Saharia et al. 2022): a cascade of diffusion stages, with DDPM or EDM."""

NAMES = {
    "ImagenTask": "t2i_jax.systems.imagen.task",
    "ImagenOptions": "t2i_jax.systems.imagen.options",
    "ImagenSystem": "t2i_jax.systems.imagen.system",
    "Imagen": "t2i_jax.systems.imagen.classes",
    "ElucidatedImagen": "t2i_jax.systems.imagen.classes",
    "Stage": "t2i_jax.systems.cascade.stage",
}
WEIGHTS = "t2i_jax.systems.imagen.weights"
