"""Networks of several cases of eight.py; imported where a case runs, as all that only it needs."""


def vit_vqgan():
    """A tokenizer of images of 16 pixels."""
    from t2i_jax.models.vit_vqgan_paper import ViTVQGAN

    return ViTVQGAN(
        image_size=16,
        patch_size=4,
        dim=16,
        layers=1,
        heads=2,
        mlp_dim=32,
        codebook_size=16,
        codebook_dim=4,
    )


def unet(max_text_len):
    """One level, with cross-attention to texts of at most `max_text_len` tokens."""
    from t2i_jax.models.unet import Unet

    return Unet(
        dim=8,
        dim_mults=(1,),
        attn_heads=2,
        attn_dim_head=4,
        layer_attns=False,
        layer_cross_attns=True,
        attn_pool_text=False,
        max_text_len=max_text_len,
        num_resnet_blocks=0,
        attend_at_middle=False,
        init_cross_embed=False,
        init_conv_kernel_size=3,
    )
