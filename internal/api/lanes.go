package api

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"slices"
	"time"

	"github.com/go-chi/chi/v5"

	"cardorder/internal/order"
	"cardorder/internal/store"
)

// laneD1 is the one lane of an issuer: its D1.
const laneD1 = "d1"

// lanesView are the lanes of an issuer.
type lanesView struct {
	Data []laneView `json:"data"`
}

// laneView is how the sending to an issuer's D1 goes.
type laneView struct {
	Lane  string     `json:"lane"`
	State laneState  `json:"state"`
	Pause *pauseView `json:"pause,omitempty"`
	Stop  *stopView  `json:"stop,omitempty"`
	// Attention is what a human has to look at, the gravest first.
	Attention []laneAttentionView `json:"attention"`
	Limits    limitsView          `json:"limits"`
	Backlog   []backlogView       `json:"backlog"`
	Unknown   int                 `json:"unknown"`
	Refused   int                 `json:"refused"`
	GivenUp   int                 `json:"givenUp"`
	Replicas  []replicaView       `json:"replicas"`
}

type laneAttentionView struct {
	Code   order.LaneAttention `json:"code"`
	Detail string              `json:"detail"`
	Actor  string              `json:"actor"`
	Next   string              `json:"next"`
}

// laneState is what holds for a lane on all replicas.
type laneState string

const (
	laneRunning laneState = "RUNNING"
	lanePaused  laneState = "PAUSED"
	laneStopped laneState = "STOPPED"
)

type pauseView struct {
	At     time.Time `json:"at"`
	By     string    `json:"by"`
	Reason string    `json:"reason"`
}

type stopView struct {
	At          time.Time `json:"at"`
	Reason      string    `json:"reason"`
	NextProbeAt time.Time `json:"nextProbeAt"`
}

type limitsView struct {
	Concurrency   int `json:"concurrency"`
	RatePerSecond int `json:"ratePerSecond,omitempty"`
}

type backlogView struct {
	Class            string `json:"class"`
	Messages         int    `json:"messages"`
	Due              int    `json:"due"`
	OldestDueSeconds int64  `json:"oldestDueSeconds"`
}

type replicaView struct {
	ID     string    `json:"id"`
	Host   string    `json:"host"`
	SeenAt time.Time `json:"seenAt"`
	replicaHealth
}

// replicaHealth is what a process says of its lane in its heartbeat. Of another
// release it may lack something.
type replicaHealth struct {
	Sending     *breakerView `json:"sending,omitempty"`
	Asking      *breakerView `json:"asking,omitempty"`
	InFlight    int          `json:"inFlight"`
	Concurrency int          `json:"concurrency"`
	ClockSkewMS int64        `json:"clockSkewMs"`
}

type breakerView struct {
	State  string     `json:"state"`
	Reason string     `json:"reason,omitempty"`
	Until  *time.Time `json:"until,omitempty"`
}

func (s *server) listLanes(w http.ResponseWriter, r *http.Request) error {
	view, err := s.viewLane(r.Context(), s.issuers[chi.URLParam(r, "issuerId")])
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, lanesView{Data: []laneView{view}})
	return nil
}

// pauseLane keeps a lane from sending and asking, on all replicas.
func (s *server) pauseLane(w http.ResponseWriter, r *http.Request) error {
	var reason string
	return s.changeLane(w, r, func(text []byte, rules *order.Rules) (faults order.Faults) {
		reason, faults = order.DecodePause(text, rules)
		return faults
	}, func(ctx context.Context, lane, actor string) error {
		_, err := s.Store.PauseLane(ctx, lane, actor, reason)
		return err
	})
}

// resumeLane lets it go on, and gives what stopped by itself another try.
func (s *server) resumeLane(w http.ResponseWriter, r *http.Request) error {
	return s.changeLane(w, r, order.DecodeNothing, func(ctx context.Context, lane, actor string) error {
		_, err := s.Store.ResumeLane(ctx, lane, actor)
		return err
	})
}

// changeLane reads a request with decode, does what it wants, and shows the lane.
func (s *server) changeLane(
	w http.ResponseWriter, r *http.Request,
	decode func([]byte, *order.Rules) order.Faults, change func(ctx context.Context, lane, actor string) error,
) error {
	issuer := s.issuers[chi.URLParam(r, "issuerId")]
	if chi.URLParam(r, "lane") != laneD1 {
		return errNoSuchLane
	}
	lane := store.LaneOf(issuer.ID)
	annotate(r.Context(), slog.String("lane", lane))
	if err := readCall(r, s.Rules(issuer.ID), decode); err != nil {
		return err
	}
	if err := change(r.Context(), lane, caller(r.Context()).Name); err != nil {
		return err
	}
	view, err := s.viewLane(r.Context(), issuer)
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, view)
	return nil
}

// viewLane gathers what is known of an issuer's lane: what holds for all replicas,
// what waits, and what each replica says.
func (s *server) viewLane(ctx context.Context, issuer *Issuer) (laneView, error) {
	lane := store.LaneOf(issuer.ID)
	view := laneView{
		Lane: laneD1, State: laneRunning, Backlog: []backlogView{}, Replicas: []replicaView{},
		Limits: limitsView{issuer.Concurrency, issuer.RatePerSecond},
	}
	states, err := s.Store.Lanes(ctx)
	if err != nil {
		return view, err
	}
	state := states[lane]
	if !state.StoppedAt.IsZero() {
		view.State, view.Stop = laneStopped, &stopView{state.StoppedAt, state.StopReason, state.ProbeAt}
	}
	if !state.PausedAt.IsZero() { // nothing is sent at all, a stop's probes neither
		view.State, view.Pause = lanePaused, &pauseView{state.PausedAt, state.PausedBy, state.PauseReason}
	}
	backlog, err := s.Store.Backlog(ctx, lane)
	if err != nil {
		return view, err
	}
	for _, c := range backlog.Classes {
		view.Backlog = append(view.Backlog, backlogView{c.Class.String(), c.Messages, c.Due, int64(c.OldestDue.Seconds())})
	}
	view.Unknown, view.Refused, view.GivenUp = backlog.Unknown, backlog.Refused, backlog.GivenUp
	replicas, err := s.Store.Replicas(ctx)
	if err != nil {
		return view, err
	}
	for _, r := range replicas {
		view.Replicas = append(view.Replicas, viewReplica(r, lane))
	}
	view.Attention = laneAttention(&view)
	return view, nil
}

// laneAttention finds what a human has to look at.
func laneAttention(view *laneView) []laneAttentionView {
	list := []laneAttentionView{}
	for _, a := range order.LaneAttentions {
		raised := false
		switch a {
		case order.LaneStopped:
			raised = view.Stop != nil
		case order.LanePaused:
			raised = view.Pause != nil
		case order.LaneFailing:
			raised = slices.ContainsFunc(view.Replicas, func(r replicaView) bool { return r.Sending.fails() || r.Asking.fails() })
		}
		if raised {
			advice := a.Advice()
			list = append(list, laneAttentionView{a, advice.Detail, advice.Actor, advice.Next})
		}
	}
	return list
}

// fails tells that calls fail one after the other.
func (b *breakerView) fails() bool { return b != nil && b.State != "" && b.State != "closed" }

// viewReplica shows a replica's word on its lane, as far as it can be read: a
// replica of another release is listed all the same.
func viewReplica(r store.Replica, lane string) replicaView {
	view := replicaView{ID: r.ID.String(), Host: r.Host, SeenAt: r.SeenAt}
	if err := json.Unmarshal(r.Health[lane], &view.replicaHealth); err != nil {
		view.replicaHealth = replicaHealth{}
	}
	return view
}
