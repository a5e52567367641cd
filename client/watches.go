package client

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"time"

	"google.golang.org/grpc"

	"kvstore/components/kverr"
	kvstorev1 "kvstore/proto/gen/kvstore/v1"
)

// watchWindow is how many bytes of events a watch may have been sent that its loop has not taken, and one response more.
const watchWindow = 256 << 10

// eventOverhead is what an event takes of a watch's credit besides the lengths of its key and values.
const eventOverhead = 64

// watches is the Watches stream of a connection. All its watches share it: it is opened for the first of them, and ended by the last.
type watches struct {
	kv   kvstorev1.KVServiceClient
	ctx  context.Context // ends with close
	end  context.CancelFunc
	wait sync.WaitGroup // goroutines that receive

	mu     sync.Mutex
	stream *watchStream // the one that the next watch takes; guarded by mu
}

func newWatches(kv kvstorev1.KVServiceClient) *watches {
	w := &watches{kv: kv}
	w.ctx, w.end = context.WithCancel(context.Background())
	return w
}

// watchStream is one stream.
type watchStream struct {
	of     *watches
	ctx    context.Context // of the stream
	cancel context.CancelFunc
	opened chan struct{} // closed when rpc is set, or err
	rpc    grpc.BidiStreamingClient[kvstorev1.WatchesRequest, kvstorev1.WatchesResponse]

	sending sync.Mutex
	last    uint64 // name of the last watch; guarded by sending

	users int                   // watches, begun or not; guarded by of.mu, as is all below
	feeds map[uint64]*watchFeed // by name
	err   error                 // the stream is over
}

// watchFeed is what one watch gets. Its methods are for one goroutine.
type watchFeed struct {
	stream *watchStream
	id     uint64        // 0: not begun
	got    chan struct{} // a token: there is something
	taken  int64         // bytes taken for which no credit was given back

	mu    sync.Mutex
	queue []received // guarded by mu, as is err
	err   error      // after the queue
}

// received is a response, perhaps one that others get too.
type received struct {
	*kvstorev1.WatchResponse
	shared bool
}

// begin begins a watch; the feed must be ended.
func (w *watches) begin(ctx context.Context, req *kvstorev1.WatchRequest) (*watchFeed, error) {
	f := &watchFeed{got: make(chan struct{}, 1)}
	w.mu.Lock()
	if w.ctx.Err() != nil {
		w.mu.Unlock()
		return nil, errClosed
	}
	s := w.stream
	if s == nil {
		s = &watchStream{of: w, opened: make(chan struct{}), feeds: make(map[uint64]*watchFeed)}
		s.ctx, s.cancel = context.WithCancel(w.ctx)
		w.stream = s
		w.wait.Go(s.receive)
	}
	s.users++
	f.stream = s
	w.mu.Unlock()
	select {
	case <-s.opened:
	case <-ctx.Done():
		f.end()
		return nil, ctx.Err()
	}
	if err := f.begin(req); err != nil {
		f.end()
		return nil, err
	}
	return f, nil
}

// begin sends the request.
func (f *watchFeed) begin(req *kvstorev1.WatchRequest) error {
	s := f.stream
	s.sending.Lock() // names go up
	defer s.sending.Unlock()
	s.of.mu.Lock()
	if err := s.err; err != nil {
		s.of.mu.Unlock()
		return err
	}
	s.last++
	f.id = s.last
	s.feeds[f.id] = f
	s.of.mu.Unlock()
	// An error is told by whoever receives.
	_ = s.rpc.Send(&kvstorev1.WatchesRequest{Ask: &kvstorev1.WatchesRequest_Begin_{
		Begin: &kvstorev1.WatchesRequest_Begin{WatchId: f.id, Watch: req, Credit: watchWindow},
	}})
	return nil
}

// receive opens the stream and hands on what comes, until it ends.
func (s *watchStream) receive() {
	rpc, err := s.of.kv.Watches(s.ctx)
	s.rpc = rpc
	if err != nil {
		s.fail(err)
		close(s.opened)
		return
	}
	close(s.opened)
	for {
		m, err := rpc.Recv()
		if err != nil {
			s.fail(err)
			return
		}
		s.of.mu.Lock()
		for _, id := range m.WatchIds {
			if f := s.feeds[id]; f != nil {
				f.push(m, len(m.WatchIds) > 1)
			}
		}
		s.of.mu.Unlock()
	}
}

// fail ends all watches of the stream.
func (s *watchStream) fail(err error) {
	s.cancel()
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	s.err = err
	s.retire()
	for _, f := range s.feeds {
		f.over(err)
	}
}

// retire has the next watch take another stream. of.mu held.
func (s *watchStream) retire() {
	if s.of.stream == s {
		s.of.stream = nil
	}
}

// send sends a message.
func (s *watchStream) send(m *kvstorev1.WatchesRequest) {
	s.sending.Lock()
	defer s.sending.Unlock()
	_ = s.rpc.Send(m) // an error is told by whoever receives
}

// close ends the stream, and waits until nobody receives any more.
func (w *watches) close() {
	w.mu.Lock() // whoever begins a watch sees the end
	w.end()
	w.mu.Unlock()
	w.wait.Wait()
}

func (f *watchFeed) push(m *kvstorev1.WatchesResponse, shared bool) {
	if m.Error != nil {
		f.over(kverr.FromItem(m.Error))
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	progress := kvstorev1.WatchControl_WATCH_CONTROL_PROGRESS
	if n := len(f.queue); n > 0 && m.Told.GetControl() == progress && f.queue[n-1].Control == progress {
		f.queue = f.queue[:n-1] // a loop that does not come back costs no more for that
	}
	f.queue = append(f.queue, received{m.Told, shared})
	f.poke()
}

func (f *watchFeed) over(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
	f.poke()
}

func (f *watchFeed) poke() {
	select {
	case f.got <- struct{}{}:
	default:
	}
}

// next waits for the next response.
func (f *watchFeed) next(ctx context.Context, silent <-chan time.Time) (received, error) {
	for {
		f.mu.Lock()
		if len(f.queue) > 0 {
			r := f.queue[0]
			f.queue[0] = received{}
			f.queue = f.queue[1:]
			f.mu.Unlock()
			return r, nil
		}
		err := f.err
		f.mu.Unlock()
		if err != nil {
			return received{}, err
		}
		select {
		case <-f.got:
		case <-ctx.Done():
			return received{}, ctx.Err()
		case <-silent:
			f.stream.of.mu.Lock()
			f.stream.retire()
			f.stream.of.mu.Unlock()
			return received{}, io.EOF
		}
	}
}

// took gives the credit of a response back, that of several together.
func (f *watchFeed) took(r received) {
	for _, e := range r.Events {
		f.taken += int64(len(e.Key)+len(e.Value)+len(e.PrevValue)) + eventOverhead
	}
	if f.taken < watchWindow/2 {
		return
	}
	f.stream.send(&kvstorev1.WatchesRequest{Ask: &kvstorev1.WatchesRequest_Credit_{
		Credit: &kvstorev1.WatchesRequest_Credit{WatchId: f.id, Bytes: f.taken},
	}})
	f.taken = 0
}

// end ends the watch; the last one's end is the stream's.
func (f *watchFeed) end() {
	s := f.stream
	s.of.mu.Lock()
	delete(s.feeds, f.id)
	s.users--
	last, over := s.users == 0, s.err != nil
	if last {
		s.retire()
	}
	s.of.mu.Unlock()
	switch {
	case last:
		s.cancel()
	case f.id != 0 && !over:
		s.send(&kvstorev1.WatchesRequest{Ask: &kvstorev1.WatchesRequest_EndId{EndId: f.id}})
	}
}

// endOf is the error of a watch that may go on elsewhere, unless it says otherwise.
func endOf(err error) error {
	var e *kverr.Error
	if !errors.As(err, &e) { // of the stream, not of the watch
		err = fromRPC(err, reads)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, kverr.Canceled) {
		return &kverr.Error{Kind: kverr.Unavailable, Message: "the server ended the watch, or said nothing", Err: err}
	}
	return err
}

// own are bytes that nobody else has.
func (r received) own(b []byte) []byte {
	if r.shared {
		return bytes.Clone(b)
	}
	return b
}
