//! The mixes against the published rule, layer by layer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a failure is the test's result")]

use rstest::rstest;

use super::*;
use crate::checkpoint::testing::tiny_config;

fn model(layers: usize) -> ModelConfig {
    ModelConfig { layers, hidden: 4096, intermediate: 11_008, heads: 32, kv_heads: 8, head_dim: 128, ..tiny_config() }
}

/// The layers with more bits, worked out by hand from `i < n/8 || i >= 7n/8 || (i - n/8) % 3 == 2`.
#[rstest]
#[case(8, &[0, 3, 6, 7])]
#[case(28, &[0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27])]
#[case(30, &[0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 26, 27, 28, 29])]
#[case(32, &[0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31])]
#[case(80, &[
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 15, 18, 21, 24, 27, 30, 33, 36, 39, 42, 45, 48, 51, 54, 57, 60, 63, 66, 69, 70, 71,
    72, 73, 74, 75, 76, 77, 78, 79,
])]
fn values_and_down_projections_take_q6_k_in_the_published_layers(#[case] layers: usize, #[case] more: &[usize]) {
    let config = model(layers);
    for (file_type, most) in [(FileType::Q4_K_M, SourceDtype::Q4_K), (FileType::Q5_K_M, SourceDtype::Q5_K)] {
        for layer in 0..layers {
            let of = |role| file_type.tensor_type(role, &config, false);
            let expected = if more.contains(&layer) { SourceDtype::Q6_K } else { most };
            assert_eq!(of(Role::Down(layer)), expected, "{file_type} layer {layer} of {layers}");
            // At 80 layers the values that get no Q6_K get at least Q5_K.
            let value = if layers == 80 && expected == SourceDtype::Q4_K { SourceDtype::Q5_K } else { expected };
            assert_eq!(of(Role::Value(layer)), value, "{file_type} layer {layer} of {layers}");
            for role in
                [Role::Query(layer), Role::Key(layer), Role::AttentionOutput(layer), Role::Gate(layer), Role::Up(layer)]
            {
                assert_eq!(of(role), most);
            }
        }
    }
}

#[test]
fn only_a_70b_model_gives_its_values_five_bits() {
    let value = |config: &ModelConfig| FileType::Q4_K_M.tensor_type(Role::Value(10), config, false);
    assert_eq!(value(&model(80)), SourceDtype::Q5_K);
    // 65B: as many key/value heads as heads.
    assert_eq!(value(&ModelConfig { kv_heads: 32, ..model(80) }), SourceDtype::Q4_K);
    let qwen = ModelConfig { architecture: Architecture::Qwen2, kv_heads: 32, ..model(80) };
    assert_eq!(value(&qwen), SourceDtype::Q5_K);
}

#[rstest]
#[case(FileType::F16, SourceDtype::F16, SourceDtype::F16)]
#[case(FileType::BF16, SourceDtype::Bf16, SourceDtype::Bf16)]
#[case(FileType::Q8_0, SourceDtype::Q8_0, SourceDtype::Q8_0)]
#[case(FileType::Q6_K, SourceDtype::Q6_K, SourceDtype::Q6_K)]
#[case(FileType::Q5_K_M, SourceDtype::Q5_K, SourceDtype::Q6_K)]
#[case(FileType::Q4_K_M, SourceDtype::Q4_K, SourceDtype::Q6_K)]
#[case(FileType::Q4_1, SourceDtype::Q4_1, SourceDtype::Q6_K)]
#[case(FileType::Q4_0, SourceDtype::Q4_0, SourceDtype::Q6_K)]
fn the_output_layer_is_the_embedding_of_a_tied_model(
    #[case] file_type: FileType,
    #[case] most: SourceDtype,
    #[case] output: SourceDtype,
) {
    let tied = model(32);
    let untied = ModelConfig { tied_embeddings: false, ..model(32) };
    assert_eq!(file_type.tensor_type(Role::Embedding, &tied, false), output);
    assert_eq!(file_type.tensor_type(Role::Embedding, &untied, false), most);
    assert_eq!(file_type.tensor_type(Role::Output, &untied, false), output);
    assert_eq!(file_type.tensor_type(Role::Gate(4), &tied, false), most);
    for vector in [Role::FinalNorm, Role::AttentionNorm(0), Role::MlpNorm(0), Role::QueryBias(0), Role::KeyNorm(0)] {
        assert_eq!(file_type.tensor_type(vector, &tied, false), SourceDtype::F32);
    }
}

#[test]
fn rows_that_blocks_do_not_divide_take_the_next_type() {
    let narrow = ModelConfig { hidden: 576, heads: 9, kv_heads: 3, head_dim: 64, intermediate: 1536, ..model(30) };
    let of = |file_type: FileType, role| file_type.tensor_type(role, &narrow, false);
    assert_eq!(of(FileType::Q4_K_M, Role::Gate(4)), SourceDtype::Q5_0);
    assert_eq!(of(FileType::Q5_K_M, Role::Gate(4)), SourceDtype::Q5_1);
    assert_eq!(of(FileType::Q6_K, Role::Gate(4)), SourceDtype::Q8_0);
    assert_eq!(of(FileType::Q4_K_M, Role::Embedding), SourceDtype::Q8_0);
    assert_eq!(of(FileType::Q4_K_M, Role::Down(4)), SourceDtype::Q4_K);
    assert_eq!(of(FileType::Q4_K_M, Role::Down(5)), SourceDtype::Q6_K);
    let odd = ModelConfig { hidden: 80, ..narrow };
    for file_type in [FileType::Q4_K_M, FileType::Q6_K, FileType::Q8_0, FileType::Q4_0] {
        assert_eq!(file_type.tensor_type(Role::Gate(4), &odd, false), SourceDtype::F16);
    }
}

#[test]
fn an_importance_matrix_spares_the_first_down_projections_of_q4_0() {
    let of = |layer, importance| FileType::Q4_0.tensor_type(Role::Down(layer), &model(32), importance);
    assert_eq!([of(3, true), of(4, true), of(3, false)], [SourceDtype::Q4_1, SourceDtype::Q4_0, SourceDtype::Q4_0]);
}

#[test]
fn names_read_as_users_write_them() {
    for file_type in FileType::ALL {
        assert_eq!(file_type.name().to_lowercase().parse::<FileType>().unwrap(), file_type);
    }
    let error = "Q3_K_S".parse::<FileType>().unwrap_err().to_string();
    assert!(error.contains("Q3_K_S") && error.contains("Q4_K_M"), "{error}");
}
