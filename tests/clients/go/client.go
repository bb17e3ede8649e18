// Lookups and an update over gRPC: ./client HOST:8001 TOKEN REQUEST_ID
package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"log"
	"math"
	"os"
	"time"

	gatherd "github.com/gatherd/gatherd/gen/go/gatherd/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// A lookup may be sent again at will; an update under the same request id.
const retries = `{"methodConfig": [{
	"name": [{"service": "gatherd.v1.EmbeddingService"}],
	"timeout": "10s",
	"retryPolicy": {
		"maxAttempts": 5, "initialBackoff": "0.05s", "maxBackoff": "2s", "backoffMultiplier": 2,
		"retryableStatusCodes": ["UNAVAILABLE"]
	}
}]}`

func int64s(ids ...int64) *gatherd.Tensor {
	data := make([]byte, 8*len(ids))
	for i, id := range ids {
		binary.LittleEndian.PutUint64(data[8*i:], uint64(id))
	}
	shape := []int64{int64(len(ids))}
	return &gatherd.Tensor{Dtype: gatherd.DType_DTYPE_INT64, Shape: shape, Data: data}
}

func float32s(values []float32, shape ...int64) *gatherd.Tensor {
	data := make([]byte, 4*len(values))
	for i, value := range values {
		binary.LittleEndian.PutUint32(data[4*i:], math.Float32bits(value))
	}
	return &gatherd.Tensor{Dtype: gatherd.DType_DTYPE_FLOAT32, Shape: shape, Data: data}
}

func floatsOf(tensor *gatherd.Tensor) []float32 {
	values := make([]float32, len(tensor.Data)/4)
	for i := range values {
		values[i] = math.Float32frombits(binary.LittleEndian.Uint32(tensor.Data[4*i:]))
	}
	return values
}

func stringKeys(keys ...string) *gatherd.Keys {
	strings := &gatherd.StringKeys{Shape: []int64{int64(len(keys))}}
	for _, key := range keys {
		var length [4]byte
		binary.LittleEndian.PutUint32(length[:], uint32(len(key)))
		strings.Lengths = append(strings.Lengths, length[:]...)
		strings.Data = append(strings.Data, key...)
	}
	return &gatherd.Keys{Kind: &gatherd.Keys_Strings{Strings: strings}}
}

func show(name string, vectors *gatherd.Tensor) {
	fmt.Print(name)
	for _, value := range floatsOf(vectors) {
		fmt.Print(" ", value)
	}
	fmt.Println()
}

func main() {
	address, token, requestID := os.Args[1], os.Args[2], os.Args[3]
	connection, err := grpc.Dial(address, grpc.WithInsecure(), grpc.WithDefaultServiceConfig(retries),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32)))
	if err != nil {
		log.Fatal(err)
	}
	defer connection.Close()
	client := gatherd.NewEmbeddingServiceClient(connection)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+token)

	byID, err := client.Lookup(ctx, &gatherd.LookupRequest{
		Table: "words", Rows: &gatherd.LookupRequest_Ids{Ids: int64s(4, 20)}})
	if err != nil {
		log.Fatal(err)
	}
	show("ids", byID.Vectors) // byID.Vectors.Shape is [2 4]

	byKey, err := client.Lookup(ctx, &gatherd.LookupRequest{
		Table: "words", Rows: &gatherd.LookupRequest_Keys{Keys: stringKeys("king", "queen")}})
	if err != nil {
		log.Fatal(err)
	}
	show("keys", byKey.Vectors)

	_, err = client.Lookup(ctx, &gatherd.LookupRequest{
		Table: "words", Rows: &gatherd.LookupRequest_Keys{Keys: stringKeys("kng")}})
	var info *errdetails.ErrorInfo
	var wrong *errdetails.BadRequest
	for _, detail := range status.Convert(err).Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			info = detail
		case *errdetails.BadRequest:
			wrong = detail
		}
	}
	fmt.Println("error", info.Reason, info.Metadata["table"], wrong.FieldViolations[0].Field)

	update := &gatherd.UpdateRequest{
		Updates: []*gatherd.TableUpdate{{
			Table:  "words",
			Rows:   &gatherd.TableUpdate_Ids{Ids: int64s(4)},
			Values: float32s([]float32{0.5, 0.5, 0.5, 0.5}, 1, 4),
		}},
		RequestId: &gatherd.UpdateRequest_IdempotencyKey{IdempotencyKey: requestID},
	}
	added, err := client.ScatterAdd(ctx, update)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("added", added.Lsn)
	again, err := client.ScatterAdd(ctx, update) // done once: the first answer comes again
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("again", again.Lsn)
}
