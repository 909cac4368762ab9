use super::*;
use crate::conformance::Tolerances;
use crate::{BatchSequence, LinearRole, WeightData};

crate::conformance_suite!(ReferenceBackend, Tolerances::F32);

fn one_token(id: u32, position: usize, blocks: Vec<u32>) -> Batch {
    Batch {
        token_ids: vec![id],
        sequences: vec![BatchSequence {
            num_tokens: 1,
            num_computed_tokens: position,
            block_table: blocks,
        }],
        logit_rows: vec![0],
        copies: Vec::new(),
    }
}

fn cache(backend: &mut ReferenceBackend) -> KvCache {
    let spec = KvCacheSpec {
        num_kv_heads: 1,
        head_dim: 2,
        num_blocks: 3,
        num_host_blocks: 0,
        layers: vec![KvTypes::both(KvDtype::F32)],
    };
    backend.alloc_kv_cache(&spec).expect("a small cache")
}

#[test]
fn ids_positions_and_blocks_out_of_range_are_errors() {
    let mut backend = ReferenceBackend;
    let table = Tensor::zeros(4, 2);
    let step = backend
        .begin_step(&one_token(4, 5, vec![3]))
        .expect("the batch is consistent");
    assert!(backend.embed(&table, Ids::Tokens, &step).is_err());
    assert!(backend.embed(&table, Ids::Positions, &step).is_err());
    let mut cache = cache(&mut backend);
    let row = Tensor::zeros(1, 2);
    assert!(backend.store_kv(&mut cache, 0, &row, &row, &step).is_err());
    let spec = AttentionSpec {
        num_heads: 1,
        num_kv_heads: 1,
        head_dim: 2,
        scale: 1.0,
        window: None,
        soft_cap: None,
    };
    assert!(backend.attention(&row, &cache, 0, &spec, &step).is_err());
    for (from, to) in [(3, 0), (0, 3)] {
        let copies = [BlockCopy { from, to }];
        assert!(backend.copy_blocks(&mut cache, &copies).is_err());
    }
    // A table that does not reach the token.
    let short = one_token(0, BLOCK_SIZE, vec![0]);
    assert!(backend.begin_step(&short).is_err());
}

#[test]
fn malformed_weights_and_impossible_caches_are_errors() {
    let mut backend = ReferenceBackend;
    let tensor = || HostTensor {
        rows: 2,
        columns: 3,
        data: WeightData::F32(vec![0.0; 5]),
    };
    assert!(backend.load_tensor(tensor()).is_err());
    let weight = LinearWeight {
        weight: HostTensor::vector(vec![0.0; 3]),
        bias: Some(vec![0.0; 2]),
        role: LinearRole::Projection,
    };
    assert!(backend.load_linear(weight).is_err());
    let spec = KvCacheSpec {
        num_kv_heads: 1 << 30,
        head_dim: 1 << 10,
        num_blocks: 1 << 20,
        num_host_blocks: 0,
        layers: vec![KvTypes::both(KvDtype::F32)],
    };
    let error = backend.alloc_kv_cache(&spec).expect_err("half an exabyte");
    assert!(matches!(error, BackendError::OutOfMemory { .. }), "{error}");
}
