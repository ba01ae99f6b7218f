"""Parsing of machine code."""

from __future__ import annotations

from tests.csrc import sass

SASS = """\
	code for sm_90
		Function : kernel
        /*0000*/                   LDGSTS.E.BYPASS.128 [R4], desc[UR4][R2.64], !P3 ;  /* 0x1 */
        /*0010*/              @!P0 BRA 0x10 ;  /* 0x1 */
        /*0020*/                   LDSM.16.M88.4 R4, [R8] ;  /* 0x1 */
        /*0030*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;  /* 0x1 */
        /*0040*/               @P1 BRA 0x30 ;  /* 0x1 */
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;  /* 0x1 */
        /*0060*/              @!P2 BRA 0x80 ;  /* 0x1 */
        /*0070*/               @P1 BRA 0x20 ;  /* 0x1 */
        /*0080*/                   EXIT ;  /* 0x1 */
        /*0090*/                   BRA 0x90;  /* 0x1 */
"""


def test_an_iteration_of_the_main_loop_includes_those_of_the_inner_loop():
    ((key, listing),) = sass.kernels(SASS).items()
    assert key == ("sm_90", "kernel")
    assert sass.loops(listing) == [(0x30, 0x40), (0x20, 0x70)]
    assert sass.main_loop(listing, inner_trips=3) == {"LDSM": 1, "HMMA": 4, "BRA": 5}
