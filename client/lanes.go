package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// LaneD1 is the one lane of an issuer: its D1.
const LaneD1 = "d1"

// LaneState is what holds for a lane on all replicas of the service. Take values
// that are not here for granted: newer services have more.
type LaneState string

// States of a lane.
const (
	LaneRunning LaneState = "RUNNING"
	LanePaused  LaneState = "PAUSED"  // by a person, until somebody resumes it
	LaneStopped LaneState = "STOPPED" // by itself, until D1 accepts an order again
)

// Lane is how the sending to an issuer's D1 goes.
type Lane struct {
	Lane  string     `json:"lane"` // its name
	State LaneState  `json:"state"`
	Pause *LanePause `json:"pause"`
	Stop  *LaneStop  `json:"stop"`
	// Attention is what a human has to look at, the gravest first.
	Attention []Attention `json:"attention"`
	Limits    LaneLimits  `json:"limits"`
	// Backlog is what waits; like the counts below it is counted up to 10,000.
	Backlog  []LaneBacklog `json:"backlog"`
	Unknown  int           `json:"unknown"` // orders of which it is unknown whether D1 has them
	Refused  int           `json:"refused"` // orders set aside after a refusal
	GivenUp  int           `json:"givenUp"` // orders that wait for a Retry
	Replicas []Replica     `json:"replicas"`
}

// LanePause tells who paused a lane and why.
type LanePause struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

// LaneStop tells why a lane stopped by itself, and when the next order is tried.
type LaneStop struct {
	At          time.Time `json:"at"`
	Reason      string    `json:"reason"`
	NextProbeAt time.Time `json:"nextProbeAt"`
}

// LaneLimits are the limits of a lane, of all replicas together.
type LaneLimits struct {
	Concurrency   int `json:"concurrency"`
	RatePerSecond int `json:"ratePerSecond"` // 0 means none
}

// LaneBacklog is what waits in a lane of one class: single, batch or question.
type LaneBacklog struct {
	Class            string `json:"class"`
	Messages         int    `json:"messages"`
	Due              int    `json:"due"` // could go now
	OldestDueSeconds int64  `json:"oldestDueSeconds"`
}

// Replica is a live process of the service, and what it said of a lane at SeenAt.
type Replica struct {
	ID          string    `json:"id"`
	Host        string    `json:"host"`
	SeenAt      time.Time `json:"seenAt"`
	Sending     *Breaker  `json:"sending"` // nil when it has not told
	Asking      *Breaker  `json:"asking"`
	InFlight    int       `json:"inFlight"`    // calls to D1
	Concurrency int       `json:"concurrency"` // its share of the limit
	ClockSkewMS int64     `json:"clockSkewMs"` // its clock is behind the database's
}

// Breaker is whether a replica calls D1.
type Breaker struct {
	State  string     `json:"state"`  // closed, open, half-open, or a newer one
	Reason string     `json:"reason"` // why it is not closed
	Until  *time.Time `json:"until"`  // when the next call is tried
}

// Lanes tells how the sending to D1 goes.
func (c *Client) Lanes(ctx context.Context) ([]Lane, error) {
	page, err := get[struct {
		Data []Lane `json:"data"`
	}](ctx, c, &request{doing: "reading the lanes", method: http.MethodGet, path: "/lanes"})
	if err != nil {
		return nil, err
	}
	return page.Data, nil
}

// PauseLane keeps every replica from sending anything to D1 and from asking it,
// until [Client.ResumeLane]; what one had taken before may go out until it has heard of
// it, within two seconds. The reason, of 1 to 200 characters, is shown to everybody. Of
// a lane that is paused already it changes nothing.
func (c *Client) PauseLane(ctx context.Context, lane, reason string) (*Lane, error) {
	return c.changeLane(ctx, "pausing a lane", lane, "/pause", struct {
		Reason string `json:"reason"`
	}{reason})
}

// ResumeLane ends a pause, tries the next order of a stopped lane at once, and has
// every replica try its open breakers.
func (c *Client) ResumeLane(ctx context.Context, lane string) (*Lane, error) {
	return c.changeLane(ctx, "resuming a lane", lane, "/resume", nil)
}

func (c *Client) changeLane(ctx context.Context, doing, lane, action string, body any) (*Lane, error) {
	r, err := actionRequest(doing, "/lanes/"+url.PathEscape(lane)+action, body)
	if err != nil {
		return nil, err
	}
	return get[Lane](ctx, c, r)
}

// actionRequest makes the request of an action; body may be nil.
func actionRequest(doing, path string, body any) (*request, error) {
	r := &request{doing: doing, method: http.MethodPost, path: path, header: make(http.Header)}
	if body == nil {
		return r, nil
	}
	text, err := json.Marshal(body)
	if err != nil {
		return nil, fmt.Errorf("cardorder: %s: writing it as JSON failed", doing)
	}
	r.body = text
	r.header.Set("Content-Type", "application/json")
	return r, nil
}
