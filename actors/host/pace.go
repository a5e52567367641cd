package host

import "time"

// paceFloor is how much may always wait for a log, however slow it is.
const paceFloor = 64 << 10

// paceNothing is what an append may hold that takes what one takes for nothing.
const paceNothing = 4 << 10

// pace says how much may wait for a log, by what it made of the last appends. It is a pure machine.
//
// Group commit makes an append as large as what came during the one before, so while the log keeps up with what comes, appends are short, and
// nothing is bounded. A log that takes longer for more bytes, and does not keep up, makes them longer and longer. Two in a row that took a
// quarter of target longer than an append takes for nothing tell how fast the log is, and then no more may wait than it writes in
// target, or in twice what an append takes for nothing. One is no sign: disks stall.
type pace struct {
	target time.Duration

	base  time.Duration // what an append takes for nothing; 0 = not known
	last  int           // bytes of the last append, if it was a long one; otherwise 0
	took  time.Duration // of it, beyond what one takes for nothing
	short int           // appends since the last long one
	rate  float64       // bytes a second, when the log does not keep up; 0 = it does
}

// After so many short appends in a row the log keeps up; until then each that should have been long lets half as much more wait.
const shortAppends = 8

// landed tells of an append that was written.
func (p *pace) landed(bytes int, took time.Duration) {
	// Every append tells that one takes no longer for nothing. That one takes longer than before is believed slowly, and of those alone that are short or
	// hold next to nothing: while shards that share an engine are in each other's way none of them is quick.
	if p.base == 0 || took < p.base {
		p.base = took
	}
	longer := took - p.base
	if longer < p.target/4 || bytes <= paceNothing {
		p.base += longer / 64
	}
	if longer < p.target/4 {
		if float64(bytes) >= p.rate*(p.target/4).Seconds() { // it should have been long: the log is faster
			p.last = 0
			p.rate *= 1.5
		}
		if p.short++; p.short >= shortAppends {
			p.last, p.rate = 0, 0
		}
		return
	}
	p.short = 0
	if p.last > 0 { // both together: shards share an engine, so that large and small ones may take turns and take as long
		p.rate = float64(bytes+p.last) / (longer + p.took).Seconds()
	}
	p.last, p.took = bytes, longer
}

// limit is how many bytes may wait for the log, those in flight included; 0 = as many as come.
func (p *pace) limit() int {
	if p.rate == 0 {
		return 0
	}
	return max(paceFloor, int(p.rate*max(p.target, 2*p.base).Seconds())) // less would leave a log that is slow for nothing idle
}

// wait is how long the log takes for so many bytes; 0 = not known, for it keeps up.
func (p *pace) wait(bytes int) time.Duration {
	if p.rate == 0 {
		return 0
	}
	return p.base + time.Duration(float64(bytes)/p.rate*float64(time.Second))
}
