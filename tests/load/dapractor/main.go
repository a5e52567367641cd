// Command dapractor is what people build on Dapr actors, as a peer to measure against: it hosts actors of type "shard" over the gRPC
// actor stream of a sidecar, and each call of one makes one actor state transaction that stores the bytes it was sent under the key
// "k". It is answered once the state store has the transaction.
//
//	dapractor -addr 127.0.0.1:50001
package main

import (
	"context"
	"flag"
	"log"
	"sync"

	runtimev1 "github.com/dapr/dapr/pkg/proto/runtime/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/types/known/anypb"
)

func main() {
	addr := flag.String("addr", "127.0.0.1:50001", "gRPC `address` of the sidecar")
	flag.Parse()
	if err := host(context.Background(), *addr); err != nil {
		log.Fatal("dapractor: ", err)
	}
}

func host(ctx context.Context, addr string) error {
	cc, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	dapr := runtimev1.NewDaprClient(cc)
	stream, err := dapr.SubscribeActorEventsAlpha1(ctx)
	if err != nil {
		return err
	}
	var mu sync.Mutex // of Send
	send := func(m *runtimev1.SubscribeActorEventsRequestAlpha1) {
		mu.Lock()
		defer mu.Unlock()
		_ = stream.Send(m) // Recv tells why it failed
	}
	send(&runtimev1.SubscribeActorEventsRequestAlpha1{RequestType: &runtimev1.SubscribeActorEventsRequestAlpha1_InitialRequest{
		InitialRequest: &runtimev1.SubscribeActorEventsRequestInitialAlpha1{Entities: []string{"shard"}},
	}})
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if call := m.GetInvokeRequest(); call != nil {
			go func() {
				answer := &runtimev1.SubscribeActorEventsRequestInvokeResponseAlpha1{Id: call.Id}
				_, err := dapr.ExecuteActorStateTransaction(ctx, &runtimev1.ExecuteActorStateTransactionRequest{
					ActorType: call.ActorType, ActorId: call.ActorId,
					Operations: []*runtimev1.TransactionalActorStateOperation{{OperationType: "upsert", Key: "k", Value: &anypb.Any{Value: call.Data}}},
				})
				if err != nil {
					send(&runtimev1.SubscribeActorEventsRequestAlpha1{RequestType: &runtimev1.SubscribeActorEventsRequestAlpha1_RequestFailed{
						RequestFailed: &runtimev1.SubscribeActorEventsRequestFailedAlpha1{Id: call.Id, Code: 13, Message: err.Error()},
					}})
					return
				}
				answer.Data = call.Data
				send(&runtimev1.SubscribeActorEventsRequestAlpha1{RequestType: &runtimev1.SubscribeActorEventsRequestAlpha1_InvokeResponse{InvokeResponse: answer}})
			}()
		}
		if d := m.GetDeactivateRequest(); d != nil {
			send(&runtimev1.SubscribeActorEventsRequestAlpha1{RequestType: &runtimev1.SubscribeActorEventsRequestAlpha1_DeactivateResponse{
				DeactivateResponse: &runtimev1.SubscribeActorEventsRequestDeactivateResponseAlpha1{Id: d.Id},
			}})
		}
	}
}
