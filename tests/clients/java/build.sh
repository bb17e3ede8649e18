# With Debian's default-jdk-headless, libgrpc-java, libnetty-java, libprotobuf-java,
# libperfmark-java, protobuf-compiler and protobuf-compiler-grpc-java-plugin. With Maven or Gradle,
# io.grpc:grpc-netty, grpc-protobuf and grpc-stub bring the same.
mkdir -p gen
protoc -I "$PROTO" -I "$GOOGLEAPIS" --java_out=gen --grpc-java_out=gen \
  --plugin=protoc-gen-grpc-java="$(command -v grpc_java_plugin)" \
  gatherd_proto/v1/embedding.proto gatherd_proto/v1/status.proto gatherd_proto/v1/tensor.proto \
  google/rpc/status.proto google/rpc/error_details.proto
find gen -name '*.java' > sources
javac -nowarn -cp '/usr/share/java/*' -d classes @sources Client.java
