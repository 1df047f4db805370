use modelprofile_kernels::rtn;

use super::*;

#[test]
fn a_written_file_is_read_by_the_safetensors_library() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let weight = HostWeight::Fp8 { n: 2, k: 3, codes: vec![1, 2, 3, 4, 5, 6], scales: vec![0.5, 0.25] };
    let mut plan = TensorPlan::new(WeightFormat::Fp8);
    plan.weight("layer", WeightKind::Fp8, 2, 3);
    plan.vector("norm.weight", 2);
    let mut writer = plan.create(&path, 1).unwrap();
    writer.weight(&[Arc::new(weight)]).unwrap();
    writer.vector(&[1.0, 2.0]).unwrap();
    writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(read.tensor("layer.weight").unwrap().data(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(read.tensor("layer.weight_scale").unwrap().shape(), [2, 1]);
    assert_eq!(read.tensor("norm.weight").unwrap().data().len(), 8);
}

#[test]
fn every_kind_writes_the_tensors_that_were_planned() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("model.safetensors");
    let (n, k) = (130, 256);
    let rows: Vec<f32> = (0..n * k).map(|i| (i % 251) as f32 / 100.0 - 1.0).collect();
    let symmetric = |kind| rtn::quantize(kind, rtn::Grid::Symmetric, n, k, &rows).unwrap();
    let weights = [
        symmetric(WeightKind::Fp8Block),
        rtn::fp8_static(n, k, &rows, 0.5).unwrap(),
        rtn::int8_outliers(n, k, &rows, &[3, 200]).unwrap(),
        symmetric(WeightKind::Int4 { group: 64 }),
        symmetric(WeightKind::Int8Group { group: 32 }),
    ];
    let mut plan = TensorPlan::new(WeightFormat::Fp8);
    for (index, weight) in weights.iter().enumerate() {
        plan.weight(&index.to_string(), weight.spec().kind, n, k);
    }
    let mut writer = plan.create(&path, 2).unwrap();
    for weight in &weights {
        writer.weight(&[Arc::new(weight.clone())]).unwrap();
    }
    writer.finish().unwrap();
    let bytes = std::fs::read(path).unwrap();
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let floats = |name: &str| -> Vec<f32> {
        read.tensor(name).unwrap().data().as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    let HostWeight::Fp8Block { scales, .. } = &weights[0] else { unreachable!() };
    assert_eq!(floats("0.weight_scale"), [scales[0], scales[1], scales[128 * 2], scales[128 * 2 + 1]]);
    assert_eq!(read.tensor("0.weight_scale").unwrap().shape(), [2, 2]);
    assert_eq!(floats("1.input_scale"), [0.5]);
    assert_eq!(read.tensor("2.outlier_columns").unwrap().data(), [3, 0, 0, 0, 200, 0, 0, 0]);
    assert_eq!(read.tensor("2.outlier_weight").unwrap().shape(), [130, 2]);
}

#[test]
fn a_tensor_of_another_size_than_planned_is_an_error() {
    let directory = tempfile::tempdir().unwrap();
    let mut plan = TensorPlan::new(WeightFormat::Fp8);
    plan.vector("norm.weight", 3);
    let mut writer = plan.create(&directory.path().join("x"), 1).unwrap();
    assert!(writer.vector(&[1.0]).is_err());
}
