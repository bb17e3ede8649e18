// Lookups and an update over gRPC: ./client HOST:8001 TOKEN REQUEST_ID
#include <grpcpp/grpcpp.h>
#include <grpcpp/support/error_details.h>

#include <chrono>
#include <cstdint>
#include <cstring>
#include <iomanip>
#include <iostream>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "gatherd_proto/v1/embedding.grpc.pb.h"
#include "google/rpc/error_details.pb.h"
#include "google/rpc/status.pb.h"

namespace v1 = gatherd::v1;

// A lookup may be sent again at will; an update under the same request id.
constexpr char kRetries[] = R"({"methodConfig": [{
  "name": [{"service": "gatherd.v1.EmbeddingService"}],
  "retryPolicy": {
    "maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "2s", "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"]
  }
}]})";

// Bytes as they are in memory: little-endian on x86 and ARM, as gatherd's are.
template <typename T>
v1::Tensor TensorOf(v1::DType dtype, const std::vector<T>& values,
                    const std::vector<int64_t>& shape) {
  v1::Tensor tensor;
  tensor.set_dtype(dtype);
  tensor.mutable_shape()->Add(shape.begin(), shape.end());
  tensor.set_data(values.data(), values.size() * sizeof(T));
  return tensor;
}

v1::Tensor Int64s(const std::vector<int64_t>& ids) {
  return TensorOf(v1::DTYPE_INT64, ids, {static_cast<int64_t>(ids.size())});
}

std::vector<float> FloatsOf(const v1::Tensor& tensor) {
  std::vector<float> values(tensor.data().size() / sizeof(float));
  std::memcpy(values.data(), tensor.data().data(), values.size() * sizeof(float));
  return values;
}

v1::Keys StringKeys(const std::vector<std::string>& keys) {
  v1::Keys made;
  v1::StringKeys* strings = made.mutable_strings();
  strings->add_shape(keys.size());
  for (const std::string& key : keys) {
    const uint32_t length = key.size();
    strings->mutable_lengths()->append(reinterpret_cast<const char*>(&length), sizeof length);
    strings->mutable_data()->append(key);
  }
  return made;
}

void Check(const grpc::Status& status) {
  if (!status.ok()) throw std::runtime_error(status.error_message());
}

class Client {
 public:
  Client(const std::string& address, std::string token) : token_(std::move(token)) {
    grpc::ChannelArguments arguments;
    arguments.SetServiceConfigJSON(kRetries);
    arguments.SetMaxReceiveMessageSize(-1);
    stub_ = v1::EmbeddingService::NewStub(
        grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments));
  }

  grpc::Status Lookup(const v1::LookupRequest& request, v1::LookupResponse* response) {
    grpc::ClientContext context;
    Prepare(&context);
    return stub_->Lookup(&context, request, response);
  }

  grpc::Status ScatterAdd(const v1::UpdateRequest& request, v1::UpdateResponse* response) {
    grpc::ClientContext context;
    Prepare(&context);
    return stub_->ScatterAdd(&context, request, response);
  }

 private:
  void Prepare(grpc::ClientContext* context) {
    context->AddMetadata("authorization", "Bearer " + token_);
    context->set_deadline(std::chrono::system_clock::now() + std::chrono::seconds(10));
  }

  std::string token_;
  std::unique_ptr<v1::EmbeddingService::Stub> stub_;
};

void Show(const std::string& name, const v1::Tensor& vectors) {
  std::cout << name;
  for (float value : FloatsOf(vectors)) std::cout << " " << value;
  std::cout << "\n";
}

void ShowError(const grpc::Status& status) {
  google::rpc::Status told;
  Check(grpc::ExtractErrorDetails(status, &told));
  google::rpc::ErrorInfo info;
  google::rpc::BadRequest wrong;
  for (const auto& detail : told.details()) {
    detail.UnpackTo(&info);
    detail.UnpackTo(&wrong);
  }
  std::cout << "error " << info.reason() << " " << info.metadata().at("table") << " "
            << wrong.field_violations(0).field() << "\n";
}

int main(int, char** arguments) {
  Client client(arguments[1], arguments[2]);
  std::cout << std::setprecision(std::numeric_limits<float>::max_digits10);

  v1::LookupRequest lookup;
  v1::LookupResponse found;
  lookup.set_table("words");
  *lookup.mutable_ids() = Int64s({4, 20});
  Check(client.Lookup(lookup, &found));
  Show("ids", found.vectors());  // found.vectors().shape() is 2, 4

  *lookup.mutable_keys() = StringKeys({"king", "queen"});
  Check(client.Lookup(lookup, &found));
  Show("keys", found.vectors());

  *lookup.mutable_keys() = StringKeys({"kng"});
  ShowError(client.Lookup(lookup, &found));

  v1::UpdateRequest push;
  v1::TableUpdate* update = push.add_updates();
  update->set_table("words");
  *update->mutable_ids() = Int64s({4});
  *update->mutable_values() =
      TensorOf<float>(v1::DTYPE_FLOAT32, {0.5f, 0.5f, 0.5f, 0.5f}, {1, 4});
  push.set_idempotency_key(arguments[3]);
  v1::UpdateResponse done;
  Check(client.ScatterAdd(push, &done));
  std::cout << "added " << done.lsn() << "\n";
  Check(client.ScatterAdd(push, &done));  // done once: the first answer comes again
  std::cout << "again " << done.lsn() << "\n";
}
