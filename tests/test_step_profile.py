"""What a kernel is for, by the names that kernels had on an H200."""

import pytest

from benchmarks.step_profile import kind_of

TRITON = {"_forward_kernel", "backward_kernel"}


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("backward_kernel", "relation"),
        ("forward_128", "relation"),
        ("backward_ordered_64", "relation"),
        ("backward_plain_ordered_128", "relation"),
        ("finish_128", "relation"),
        ("_forward", "elementwise"),  # of a norm or an MLP's gate
        ("nvjet_sm90_tst_256x128_64x4_1x2_h_bz_coopA_TNT", "products"),
        (
            "cudnn_generated_fort_native_sdpa_sm90_flash_bprop_wgmma_f16_knob_26_64x64x128",
            "attention",
        ),
        (
            "void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64>>",
            "attention",
        ),
        ("Memset (Unknown)", "copies"),
        ("_cross_entropy", "elementwise"),
    ],
)
def test_kinds_of_kernels(name, kind):
    assert kind_of(name, TRITON) == kind
