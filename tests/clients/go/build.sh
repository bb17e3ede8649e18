# With Debian's golang-go, golang-google-grpc-dev, golang-github-golang-protobuf-1-5-dev,
# protoc-gen-go-1-5 and protoc-gen-go-grpc, offline. In a module of yours, `go get
# google.golang.org/grpc` and a `replace` of github.com/gatherd/gatherd do the same.
mkdir -p go/src
protoc -I "$PROTO" --go_out=go/src --go-grpc_out=go/src "$PROTO"/gatherd_proto/v1/*.proto
GO111MODULE=off GOPATH="$PWD/go:/usr/share/gocode" go build -o client client.go
