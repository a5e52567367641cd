package overload

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"

	kvv1 "kvstore/proto/gen/kvstore/v1"
)

// What is written: values of keys that are few enough to be all the state there is.
const (
	valueBytes = 256
	keys       = 10_000
	streams    = 4 // each with a connection of its own
)

// load offers puts to a server over Pipeline streams, as the raw protocol has them: nothing is tried again.
type load struct {
	streams []*stream
}

// stream is one Pipeline stream. A goroutine takes answers, another sends.
type stream struct {
	api     grpc.BidiStreamingClient[kvv1.PipelineRequest, kvv1.PipelineResponse]
	value   []byte
	answers chan struct{} // room for one: something was answered

	mu      sync.Mutex           // guards all below
	last    uint64               // id of an operation
	sent    map[uint64]time.Time // of those that are not answered
	outcome *outcome             // of the phase at hand
	err     error                // that ended the stream
}

// outcome is what became of the puts of one phase.
type outcome struct {
	began   time.Time
	sent    int
	done    []answer // that were stored
	shed    []answer // RESOURCE_EXHAUSTED
	down    []answer // UNAVAILABLE
	other   map[codes.Code]int
	unknown int // UNAVAILABLE that tells nothing of when to come again
}

// answer is one of them: when it was sent, since the phase began, and how long it took.
type answer struct{ at, took time.Duration }

// connect opens the streams.
func connect(ctx context.Context, t *testing.T, addr string) *load {
	t.Helper()
	l := &load{}
	for range streams {
		conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		api, err := kvv1.NewKVServiceClient(conn).Pipeline(ctx)
		if err != nil {
			t.Fatal(err)
		}
		s := &stream{api: api, value: make([]byte, valueBytes), answers: make(chan struct{}, 1), sent: map[uint64]time.Time{}, outcome: &outcome{other: map[codes.Code]int{}}}
		go s.receive()
		l.streams = append(l.streams, s)
	}
	return l
}

// receive takes answers until the stream ends.
func (s *stream) receive() {
	for {
		resp, err := s.api.Recv()
		now := time.Now()
		s.mu.Lock()
		if err != nil {
			s.err = err
			s.mu.Unlock()
			s.poke()
			return
		}
		for _, r := range resp.Results {
			at := s.sent[r.Id]
			delete(s.sent, r.Id)
			s.outcome.add(at, now, r.GetError())
		}
		s.mu.Unlock()
		s.poke()
	}
}

func (s *stream) poke() {
	select {
	case s.answers <- struct{}{}:
	default:
	}
}

func (o *outcome) add(at, now time.Time, e *kvv1.Error) {
	if at.Before(o.began) {
		return // of the phase before
	}
	a := answer{at.Sub(o.began), now.Sub(at)}
	switch codes.Code(e.GetCode()) {
	case codes.OK:
		o.done = append(o.done, a)
	case codes.ResourceExhausted:
		o.shed = append(o.shed, a)
	case codes.Unavailable:
		o.down = append(o.down, a)
	default:
		o.other[codes.Code(e.GetCode())]++
	}
	if e != nil && e.RetryAfterMs == 0 {
		o.unknown++
	}
}

// send sends n puts.
func (s *stream) send(n int) error {
	req := &kvv1.PipelineRequest{Ops: make([]*kvv1.PipelineRequest_Op, n)}
	now := time.Now()
	s.mu.Lock()
	if s.err != nil {
		s.mu.Unlock()
		return s.err
	}
	for i := range req.Ops {
		s.last++
		s.sent[s.last] = now
		put := &kvv1.PutOp{Key: fmt.Appendf(nil, "key/%d", rand.IntN(keys)), Value: s.value}
		req.Ops[i] = &kvv1.PipelineRequest_Op{Id: s.last, Op: &kvv1.PipelineRequest_Op_Put{Put: put}}
	}
	s.outcome.sent += n
	s.mu.Unlock()
	if err := s.api.Send(req); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

func (s *stream) outstanding() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sent)
}

// phase runs all streams for a time and returns what became of what they sent meanwhile and had an answer.
func (l *load) phase(ctx context.Context, t *testing.T, lasts time.Duration, run func(ctx context.Context, s *stream) error) *outcome {
	t.Helper()
	began := time.Now()
	for _, s := range l.streams {
		s.mu.Lock()
		s.outcome = &outcome{began: began, other: map[codes.Code]int{}}
		s.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(ctx, lasts)
	defer cancel()
	var all sync.WaitGroup
	for _, s := range l.streams {
		all.Go(func() {
			if err := run(ctx, s); err != nil {
				t.Errorf("a stream ended: %v", err)
			}
		})
	}
	all.Wait()
	sum := &outcome{began: began, other: map[codes.Code]int{}}
	for _, s := range l.streams {
		s.mu.Lock()
		o := s.outcome
		sum.sent += o.sent
		sum.unknown += o.unknown
		sum.done, sum.shed, sum.down = append(sum.done, o.done...), append(sum.shed, o.shed...), append(sum.down, o.down...)
		for code, n := range o.other {
			sum.other[code] += n
		}
		s.mu.Unlock()
	}
	return sum
}

// closed keeps so many puts under way: each that is answered makes room for another.
func (l *load) closed(ctx context.Context, t *testing.T, lasts time.Duration, under int) *outcome {
	t.Helper()
	return l.phase(ctx, t, lasts, func(ctx context.Context, s *stream) error {
		for {
			if n := under/streams - s.outstanding(); n > 0 {
				if err := s.send(n); err != nil {
					return err
				}
			}
			select {
			case <-s.answers:
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// open offers so many puts a second, whatever becomes of them.
func (l *load) open(ctx context.Context, t *testing.T, lasts time.Duration, rate float64) *outcome {
	t.Helper()
	return l.phase(ctx, t, lasts, func(ctx context.Context, s *stream) error {
		began, sent := time.Now(), 0
		tick := time.NewTicker(5 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case now := <-tick.C:
				if n := int(rate/streams*now.Sub(began).Seconds()) - sent; n > 0 {
					sent += n
					for ; n > 0; n -= 500 { // a frame has at most 1,000
						if err := s.send(min(n, 500)); err != nil {
							return err
						}
					}
				}
			case <-ctx.Done():
				return nil
			}
		}
	})
}

// control asks a server for what costs nothing, over and over, and returns how long all but a hundredth of the answers took: what the machine is busy with
// delays these as all others.
func control(ctx context.Context, t *testing.T, addr string) time.Duration {
	conn, err := grpc.NewClient("passthrough:///"+addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Error(err)
		return 0
	}
	defer conn.Close()
	var all []answer
	for ctx.Err() == nil {
		began := time.Now()
		if _, err := kvv1.NewAdminServiceClient(conn).Status(ctx, &kvv1.StatusRequest{HeadOnly: true}); err == nil {
			all = append(all, answer{took: time.Since(began)})
		}
		pause(ctx, 5*time.Millisecond)
	}
	return quantile(all, 0.99)
}

// rate is how many were stored a second, of those that were answered in time, without the beginning of the phase.
func (o *outcome) rate(from, to time.Duration) float64 {
	n := 0
	for _, a := range o.done {
		if at := a.at + a.took; at >= from && at < to {
			n++
		}
	}
	return float64(n) / (to - from).Seconds()
}

// least of all but a share of answers.
func quantile(all []answer, q float64) time.Duration {
	if len(all) == 0 {
		return 0
	}
	took := make([]time.Duration, len(all))
	for i, a := range all {
		took[i] = a.took
	}
	slices.Sort(took)
	return took[min(len(took)-1, int(q*float64(len(took))))]
}

// during are the answers of what was sent in a window of the phase.
func during(all []answer, from, to time.Duration) []answer {
	var in []answer
	for _, a := range all {
		if a.at >= from && a.at < to {
			in = append(in, a)
		}
	}
	return in
}

func (o *outcome) String() string {
	return fmt.Sprintf("%d sent; %d stored, p50 %v, p99 %v; %d shed, p50 %v, p99 %v; %d unavailable; others %v", o.sent,
		len(o.done), quantile(o.done, 0.5).Round(time.Microsecond), quantile(o.done, 0.99).Round(time.Microsecond),
		len(o.shed), quantile(o.shed, 0.5).Round(time.Microsecond), quantile(o.shed, 0.99).Round(time.Microsecond), len(o.down), o.other)
}
