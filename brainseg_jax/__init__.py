"""U-Net and Attention U-Net for brain tumour segmentation on MRI, in JAX."""
