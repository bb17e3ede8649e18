# With Debian's g++, libgrpc++-dev, protobuf-compiler-grpc and pkg-config.
mkdir -p gen
protoc -I "$PROTO" -I "$GOOGLEAPIS" --cpp_out=gen --grpc_out=gen \
  --plugin=protoc-gen-grpc="$(command -v grpc_cpp_plugin)" \
  gatherd_proto/v1/embedding.proto gatherd_proto/v1/status.proto gatherd_proto/v1/tensor.proto \
  google/rpc/status.proto google/rpc/error_details.proto
# shellcheck disable=SC2046
g++ -std=c++17 -I gen -o client client.cc $(find gen -name '*.pb.cc' ! -empty) \
  $(pkg-config --cflags --libs grpc++ protobuf)
