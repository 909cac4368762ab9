//! Safe matrix products over slices. The only place of this crate with `unsafe` in it.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// A matrix inside a slice: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `cols` elements, `row_stride` elements apart.
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        Self {
            data,
            rows,
            cols,
            row_stride,
            col_stride: 1,
        }
    }

    /// The transposed view.
    pub fn t(self) -> Self {
        Self {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }
}

/// What happens to what the destination held.
#[derive(Clone, Copy, PartialEq)]
pub enum Store {
    /// It is replaced.
    Set,
    /// The product is added to it.
    Add,
}

/// `dst = scale * a b`, or `dst += scale * a b`; `dst` has rows `dst_stride` elements apart.
pub fn matmul(
    dst: &mut [f32],
    dst_stride: usize,
    a: Matrix<'_>,
    b: Matrix<'_>,
    scale: f32,
    store: Store,
) {
    let (m, n, k) = (a.rows, b.cols, a.cols);
    assert_eq!(k, b.rows, "inner sizes agree");
    if m == 0 || n == 0 || k == 0 {
        return;
    }
    assert!(
        dst.len() > (m - 1) * dst_stride + n - 1,
        "the destination holds the product"
    );
    for x in [a, b] {
        assert!(
            x.data.len() > (x.rows - 1) * x.row_stride + (x.cols - 1) * x.col_stride,
            "a view lies in its slice"
        );
    }
    // SAFETY: the asserts above bound every offset that the product reads or writes, and `dst` is
    // borrowed mutably, so it overlaps neither factor.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst.as_mut_ptr(),
            1,
            dst_stride as isize,
            store == Store::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}
