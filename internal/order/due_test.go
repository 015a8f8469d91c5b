package order_test

import (
	"slices"
	"testing"
	"time"

	"cardorder/internal/order"

	"pgregory.net/rapid"
)

// A Tuesday, in the morning in Paris.
var morning = at("2026-03-03T09:00:00+01:00")

// limited is a clock of orders with limits: a card a day after receipt, D1 asked after a day.
func limited(t *testing.T, now time.Time) order.Clock {
	t.Helper()
	return order.Clock{Now: now, Accepted: morning, Issuance: order.IssuanceCreation, Limits: &order.Limits{
		Calendar: calendar(t, order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 1}, TimeZone: "Europe/Paris"}),
		Budget:   map[order.Status]time.Duration{order.Submitted: 4 * time.Hour, order.Ready: 2 * time.Hour},
	}}
}

// What D1 says counts before what was agreed; a date ends with its day at the centre.
func TestDueAt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		dueDate  string
		calendar bool
		want     string
	}{
		{"a date", "2026-03-06", true, "2026-03-07T00:00:00+01:00"},
		{"a date, before the clock changes", "2026-03-28", true, "2026-03-29T00:00:00+01:00"},
		{"a date, as the clock changes", "2026-03-29", true, "2026-03-30T00:00:00+02:00"},
		{"the last day of a year", "2026-12-31", true, "2027-01-01T00:00:00+01:00"},
		{"a date, and no centre known", "2026-03-06", false, "2026-03-07T00:00:00Z"},
		{"a time", "2026-03-06T16:00:00+02:00", true, "2026-03-06T16:00:00+02:00"},
		{"a time in UTC", "2026-03-06T16:00:00.5Z", false, "2026-03-06T16:00:00.5Z"},
		{"a time with a short zone", "2026-03-06T16:00:00+0200", true, "2026-03-06T14:00:00Z"},
		{"a time in no zone", "2026-03-06T16:00:00", true, "2026-03-06T16:00:00+01:00"},
		{"to the minute", "2026-03-06T16:00", true, "2026-03-06T16:00:00+01:00"},
		{"no date at all: as agreed", "soon", true, "2026-03-05T00:00:00+01:00"},
		{"no such date: as agreed", "2026-02-30", true, "2026-03-05T00:00:00+01:00"},
		{"not in our time: as agreed", "9999-12-31", true, "2026-03-05T00:00:00+01:00"},
		{"before our time: as agreed", "0000-01-01T00:00:00Z", true, "2026-03-05T00:00:00+01:00"},
		{"nothing known", "soon", false, ""},
	} {
		clock := limited(t, morning)
		if !c.calendar {
			clock.Limits = nil
		}
		r := says("CARD_PROD_READY", pending)
		r.DueDate = c.dueDate
		s, _ := order.Advance(order.NewState(order.Shipped), clock, r)
		var want time.Time
		if c.want != "" {
			want = at(c.want)
		}
		if !s.DueAt.Equal(want) || !s.Due(clock).Equal(want) || s.DueDate.Value != c.dueDate {
			t.Errorf("%s: due %s, want %s", c.name, s.DueAt, want)
		}
	}
}

// Before D1 has an order, its time runs from when it was accepted or may be sent; then
// from when D1 took it.
func TestDueStarts(t *testing.T) {
	t.Parallel()
	due := func(s order.State, clock order.Clock, want string) {
		t.Helper()
		if got := s.Due(clock); !got.Equal(at(want)) {
			t.Errorf("due %s, want %s", got, want)
		}
	}
	waiting := order.NewState(order.Shipped)
	clock := limited(t, morning)
	due(waiting, clock, "2026-03-05T00:00:00+01:00")
	clock.NotBefore = morning.AddDate(0, 0, 1)
	due(order.NewHeldState(order.Shipped, order.HeldBySchedule), clock, "2026-03-06T00:00:00+01:00")
	clock.Now = morning.AddDate(0, 0, 6) // D1 was down
	late, changed := order.Advance(waiting, clock)
	if !changed || !late.Late || late.Version != 2 {
		t.Errorf("not late: %+v", late)
	}
	s, _ := order.Advance(late, clock, order.Taken{OperationID: "op"})
	due(s, clock, "2026-03-11T00:00:00+01:00")
	if s.Late {
		t.Error("D1 has just got it, and it is late")
	}
	// What was reckoned then stands, whatever becomes of the agreement.
	clock.Now = clock.Now.Add(time.Hour)
	clock.Limits = nil
	s, _ = order.Advance(s, clock, says("CARD_PROD_READY", pending))
	due(s, clock, "2026-03-11T00:00:00+01:00")
}

func TestLate(t *testing.T) {
	t.Parallel()
	s := order.NewState(order.Shipped)
	clock := limited(t, morning)
	hour := func(n int) { clock.Now = morning.Add(time.Duration(n) * time.Hour) }
	step := func(want bool, changed bool, evidence ...order.Evidence) {
		t.Helper()
		next, did := order.Advance(s, clock, evidence...)
		if did != changed || next.Late != want || did && next.Version != s.Version+1 {
			t.Errorf("at %s: changed %t, late %t; want %t, %t", clock.Now, did, next.Late, changed, want)
		}
		s = next
	}
	step(false, true, order.Taken{OperationID: "op"})
	hour(3)
	step(false, false)
	hour(4) // SUBMITTED for too long
	step(true, true)
	step(true, false)
	hour(5)
	step(false, true, says("CARD_PROD_READY", pending))
	hour(7) // READY for too long
	step(true, true)
	step(false, true, onHold) // which has no budget
	hour(8)
	step(false, true, now("CARD_PROD_READY"))
	hour(12) // once more, but it was late here before
	step(false, false)
	hour(39) // the end of the next day
	step(true, true)
	step(true, true, says("CARD_PROD_ONGOING", pending)) // progress, but it should have arrived
	r := says("CARD_PROD_ONGOING", pending)
	r.DueDate = "2026-03-10"
	step(false, true, r) // another date
	hour(24 * 30)
	step(true, true)
	step(false, true, says("CARD_SHIPPED", successful))
	hour(24 * 60)
	step(false, false)
	if want := []order.Status{order.Submitted, order.Ready, order.InProduction}; !slices.Equal(s.LateIn, want) {
		t.Errorf("late in %v, want %v", s.LateIn, want)
	}
}

// One that somebody would not wait for has its time from then on, and not from when it
// was to be sent.
func TestDueOfAnEarlyRelease(t *testing.T) {
	t.Parallel()
	clock := limited(t, morning)
	clock.NotBefore = morning.AddDate(0, 0, 60)
	s, _ := order.Advance(order.NewHeldState(order.Shipped, order.HeldBySchedule), clock, order.Details{})
	clock.Now = morning.AddDate(0, 0, 7)
	s, _ = order.Advance(s, clock, order.Hold{Reason: order.HeldByPerson})
	s, _ = order.Advance(s, clock, order.Release{Early: true})
	if want := at("2026-05-06T00:00:00+02:00"); !s.DueAt.Equal(want) {
		t.Errorf("waiting for its time it is due %s, want %s", s.DueAt, want)
	}
	s, _ = order.Advance(s, clock, order.Release{Early: true})
	if want := at("2026-03-12T00:00:00+01:00"); s.Status != order.Accepted || !s.DueAt.Equal(want) {
		t.Errorf("released it is %s, due %s, want %s", s.Status, s.DueAt, want)
	}
	clock.Now = morning.AddDate(0, 0, 8)
	clock.Sent = clock.Now
	s, _ = order.Advance(s, clock, order.Taken{OperationID: "op"})
	want := at("2026-03-13T00:00:00+01:00")
	if !s.DueAt.Equal(want) {
		t.Errorf("taken it is due %s, want %s", s.DueAt, want)
	}
	r := says("CARD_PROD_READY", pending)
	r.DueDate = "soon"
	clock.Now = morning.AddDate(0, 0, 9)
	if s, _ = order.Advance(s, clock, r); !s.DueAt.Equal(want) {
		t.Errorf("after no date at all it is due %s, want %s", s.DueAt, want)
	}
}

// The time for which an order waited for its own is not that of the person who holds it.
func TestHeldBudgetAfterASchedule(t *testing.T) {
	t.Parallel()
	s := order.NewHeldState(order.Shipped, order.HeldBySchedule)
	s.Since = morning
	clock := order.Clock{
		Now: morning.AddDate(0, 0, 29), NotBefore: morning.AddDate(0, 0, 30),
		Limits: &order.Limits{Budget: map[order.Status]time.Duration{order.Held: time.Hour}},
	}
	s, _ = order.Advance(s, clock, order.Hold{Reason: order.HeldByPerson})
	if s.Late {
		t.Error("it has just been held, and is late")
	}
	if look, want := order.NextLook(s, clock, 0), clock.Now.Add(time.Hour); !look.Equal(want) {
		t.Errorf("it is looked at at %s, want %s", look, want)
	}
}

// An order that waits for its time is not late for it, one that a person holds is.
func TestHeldBudget(t *testing.T) {
	t.Parallel()
	for hold, want := range map[order.HoldReason]bool{order.HeldBySchedule: false, order.HeldByPerson: true} {
		s := order.NewHeldState(order.Shipped, hold)
		s.Since = morning
		clock := order.Clock{Now: morning.Add(time.Hour), Limits: &order.Limits{Budget: map[order.Status]time.Duration{order.Held: time.Minute}}}
		if s, _ = order.Advance(s, clock); s.Late != want {
			t.Errorf("held by %s: late %t", hold, s.Late)
		}
	}
}

func TestToBeAsked(t *testing.T) {
	t.Parallel()
	silent := func(after time.Duration, hours float64, checks int, evidence ...order.Evidence) bool {
		heard := morning
		s, _ := order.Advance(order.NewState(order.Shipped), order.Clock{Now: morning}, evidence...)
		clock := order.Clock{Now: morning.Add(time.Duration(hours * float64(time.Hour))), Heard: heard, Checks: checks, Limits: &order.Limits{SilentAfter: after}}
		return s.ToBeAsked(clock)
	}
	taken, nameless := order.Taken{OperationID: "op"}, order.Taken{}
	for _, c := range []struct {
		name   string
		after  time.Duration
		hours  float64
		checks int
		what   order.Evidence
		want   bool
	}{
		{"heard of", 10 * time.Hour, 8.9, 0, taken, false},
		{"silent", 10 * time.Hour, 9, 0, taken, true},
		{"asked once", 10 * time.Hour, 26.9, 1, taken, false},
		{"asked once, and long ago", 10 * time.Hour, 27, 1, taken, true},
		{"asked twice", 10 * time.Hour, 62.9, 2, taken, false},
		{"asked twice, and long ago", 10 * time.Hour, 63, 2, taken, true},
		{"with more patience than most", 366 * 24 * time.Hour, 366 * 24 * 1.8, 1, taken, true},
		{"never asked", 0, 10_000, 0, taken, false},
		{"without a name", 10 * time.Hour, 9. / 3600, 0, nameless, true},
		{"without a name, asked three times", 10 * time.Hour, 134. / 3600, 3, nameless, false},
		{"without a name, asked three times, and long ago", 10 * time.Hour, 135. / 3600, 3, nameless, true},
		{"without a name, though nobody is to be asked", 0, 1, 0, nameless, true},
		{"unknown, which is asked about anyway", time.Hour, 1000, 0, order.LostAnswer{}, false},
		{"refused", time.Hour, 1000, 0, order.Refusal{}, false},
		{"ended", time.Hour, 1000, 0, says("CARD_SHIPPED", successful), false},
	} {
		if got := silent(c.after, c.hours, c.checks, c.what); got != c.want {
			t.Errorf("%s: to be asked about %t", c.name, got)
		}
	}
}

// However an order stands, the next look is neither in the past nor missed: until then
// nothing changes by itself, and at that time something is to be done, or it is looked at
// once more, later.
func TestNextLook(t *testing.T) {
	t.Parallel()
	kinds := []order.Evidence{
		order.Taken{OperationID: "op"}, order.Taken{}, says("CARD_PROD_READY", pending), says("CARD_PROD_ONGOING", pending), onHold,
		order.LostAnswer{}, order.Refusal{}, order.Hold{Reason: order.HeldBySchedule}, order.Hold{Reason: order.HeldByPerson}, order.Cancel{}, says("CARD_SHIPPED", successful),
	}
	sla := calendar(t, order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 1}, TimeZone: "Europe/Paris", ReadyBy: "17:00"})
	rapid.Check(t, func(t *rapid.T) {
		duration := func(name string) time.Duration {
			return time.Duration(rapid.IntRange(0, 200*3600).Draw(t, name)) * time.Second
		}
		limits := order.Limits{SilentAfter: duration("silent after"), Budget: make(map[order.Status]time.Duration)}
		for _, s := range order.Statuses {
			if order.HasBudget(s) && rapid.Bool().Draw(t, "budget") {
				limits.Budget[s] = duration(string(s)) + time.Second
			}
		}
		if rapid.Bool().Draw(t, "SLA") {
			limits.Calendar = sla
		}
		clock := order.Clock{Now: morning, Accepted: morning, Issuance: order.IssuanceCreation, Limits: &limits}
		s := order.NewState(order.Shipped)
		s.Since = morning
		if rapid.Bool().Draw(t, "not before") {
			clock.NotBefore = morning.Add(duration("for"))
			if clock.Early() {
				s = order.NewHeldState(order.Shipped, order.HeldBySchedule)
				s.Since = morning
			}
		}
		for range rapid.IntRange(0, 6).Draw(t, "events") {
			clock.Now = clock.Now.Add(duration("later"))
			s, _ = order.Advance(s, clock)
			if s.ScheduleEnded(clock) {
				s, _ = order.Advance(s, clock, order.Release{})
			}
			if next, changed := order.Advance(s, clock, rapid.SampledFrom(kinds).Draw(t, "evidence")); changed {
				s = next
				clock.Heard, clock.Checks = clock.Now, 0
			}
			if s.ScheduleEnded(clock) {
				s, _ = order.Advance(s, clock, order.Release{})
			}
			if rapid.Bool().Draw(t, "asked") && s.ToBeAsked(clock) {
				clock.Checks++
				clock.Asked = clock.Now
			} else {
				clock.Asked = time.Time{}
			}
		}
		look := order.NextLook(s, clock, rapid.Float64Range(0, 1).Draw(t, "spread"))
		if s.Ended() {
			if !look.IsZero() {
				t.Fatalf("an order that has ended is looked at at %s", look)
			}
			return
		}
		if !look.IsZero() && !look.After(clock.Now) {
			t.Fatalf("at %s the next look is at %s", clock.Now, look)
		}
		before := look.Add(-time.Microsecond)
		if look.IsZero() {
			before = clock.Now.AddDate(1, 0, 0)
		}
		clock.Now = before
		if next, changed := order.Advance(s, clock); changed && next.Late != s.Late {
			t.Fatalf("late at %s, and looked at at %s: %+v", before, look, s)
		}
		if s.ScheduleEnded(clock) {
			t.Fatalf("its schedule ends before it is looked at: %s, %s", clock.NotBefore, look)
		}
		if look.IsZero() && s.ToBeAsked(clock) {
			t.Fatal("it is never looked at, and silent")
		}
	})
}
