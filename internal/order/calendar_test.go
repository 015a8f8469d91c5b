package order_test

import (
	"testing"
	"time"
	_ "time/tzdata" // not every machine has time zones

	"cardorder/internal/order"

	"pgregory.net/rapid"
)

func calendar(t interface{ Fatal(...any) }, sla order.SLA) *order.Calendar {
	c, err := order.NewCalendar(sla)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func at(text string) time.Time {
	t, err := time.Parse(time.RFC3339, text)
	if err != nil {
		panic(err)
	}
	return t
}

// Times are written with the offset that the zone has then, so that the clock's changes
// (25 October 2026, 28 March 2027) show.
func TestDueByCalendar(t *testing.T) {
	t.Parallel()
	paris := order.SLA{
		WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 1, order.IssuanceRenewal: 10, order.IssuanceReplacement: 0},
		CutOff:      "12:00", ReadyBy: "17:00", TimeZone: "Europe/Paris",
		Holidays: []string{"2026-12-25", "2026-12-28", "2026-12-29", "2027-01-01", "2026-05-14"},
		Urgent:   order.Urgent{Within: 4 * time.Hour, CutOff: "12:00"},
	}
	endOfDay := paris
	endOfDay.ReadyBy, endOfDay.CutOff, endOfDay.Urgent = "", "", order.Urgent{}
	gulf := order.SLA{
		WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 1}, TimeZone: "Asia/Dubai",
		Weekend: []time.Weekday{time.Friday}, CutOff: "00:00",
	}
	noWeekend := order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 2}, Weekend: []time.Weekday{}}
	early := order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 0}, ReadyBy: "08:30", TimeZone: "Europe/Paris"}
	for _, c := range []struct {
		name     string
		sla      order.SLA
		received string
		issuance order.Issuance
		urgent   bool
		want     string
	}{
		{"the next day", paris, "2026-03-03T09:30:00+01:00", order.IssuanceCreation, false, "2026-03-04T17:00:00+01:00"},
		{"just before the cut-off", paris, "2026-03-03T11:59:59.999999+01:00", order.IssuanceCreation, false, "2026-03-04T17:00:00+01:00"},
		{"at the cut-off", paris, "2026-03-03T12:00:00+01:00", order.IssuanceCreation, false, "2026-03-05T17:00:00+01:00"},
		{"by the centre's clock, not ours", paris, "2026-03-03T11:30:00Z", order.IssuanceCreation, false, "2026-03-05T17:00:00+01:00"},
		{"by the centre's day, not ours", paris, "2026-03-03T23:30:00Z", order.IssuanceCreation, false, "2026-03-05T17:00:00+01:00"},
		{"before a weekend", paris, "2026-03-06T09:00:00+01:00", order.IssuanceCreation, false, "2026-03-09T17:00:00+01:00"},
		{"after Friday's cut-off", paris, "2026-03-06T13:00:00+01:00", order.IssuanceCreation, false, "2026-03-10T17:00:00+01:00"},
		{"on a weekend", paris, "2026-03-07T09:00:00+01:00", order.IssuanceCreation, false, "2026-03-10T17:00:00+01:00"},
		{"on a weekend, after the cut-off", paris, "2026-03-08T23:59:00+01:00", order.IssuanceCreation, false, "2026-03-10T17:00:00+01:00"},
		{"the same day", paris, "2026-03-03T09:30:00+01:00", order.IssuanceReplacement, false, "2026-03-03T17:00:00+01:00"},
		{"the same day, on a Sunday", paris, "2026-03-08T09:30:00+01:00", order.IssuanceReplacement, false, "2026-03-09T17:00:00+01:00"},
		{"ten days", paris, "2026-03-03T09:30:00+01:00", order.IssuanceRenewal, false, "2026-03-17T17:00:00+01:00"},
		{"a holiday on the way", paris, "2026-05-13T09:00:00+02:00", order.IssuanceCreation, false, "2026-05-15T17:00:00+02:00"},
		{"on a holiday", paris, "2026-05-14T09:00:00+02:00", order.IssuanceCreation, false, "2026-05-18T17:00:00+02:00"},
		{"holidays and weekends in a row", paris, "2026-12-24T12:00:00+01:00", order.IssuanceCreation, false, "2026-12-31T17:00:00+01:00"},
		{"over the end of the year", paris, "2026-12-31T09:00:00+01:00", order.IssuanceCreation, false, "2027-01-04T17:00:00+01:00"},
		{"from winter to summer", paris, "2027-03-26T09:00:00+01:00", order.IssuanceCreation, false, "2027-03-29T17:00:00+02:00"},
		{"from summer to winter", paris, "2026-10-23T09:00:00+02:00", order.IssuanceCreation, false, "2026-10-26T17:00:00+01:00"},
		{"a leap day", paris, "2028-02-28T09:00:00+01:00", order.IssuanceCreation, false, "2028-02-29T17:00:00+01:00"},

		{"urgent", paris, "2026-03-03T09:30:00+01:00", order.IssuanceCreation, true, "2026-03-03T13:30:00+01:00"},
		{"urgent, before the cut-off", paris, "2026-03-03T11:59:00+01:00", order.IssuanceCreation, true, "2026-03-03T15:59:00+01:00"},
		{"urgent, too late", paris, "2026-03-03T12:00:00+01:00", order.IssuanceCreation, true, "2026-03-05T17:00:00+01:00"},
		{"urgent, on a Sunday", paris, "2026-03-08T09:00:00+01:00", order.IssuanceCreation, true, "2026-03-10T17:00:00+01:00"},
		{"urgent, but the others are no slower", early, "2026-03-03T06:30:00+01:00", order.IssuanceCreation, true, "2026-03-03T08:30:00+01:00"},

		{"the end of the day", endOfDay, "2026-03-03T23:59:59+01:00", order.IssuanceReplacement, false, "2026-03-04T00:00:00+01:00"},
		{"the end of a day of 23 hours", order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 0}, TimeZone: "Europe/Paris", Weekend: []time.Weekday{}},
			"2027-03-28T00:00:00+01:00", order.IssuanceCreation, false, "2027-03-29T00:00:00+02:00"},
		{"the end of a day of 25 hours", order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 0}, TimeZone: "Europe/Paris", Weekend: []time.Weekday{}},
			"2026-10-25T12:00:00+01:00", order.IssuanceCreation, false, "2026-10-26T00:00:00+01:00"},
		{"a time that the clock leaps over", order.SLA{WorkingDays: map[order.Issuance]int{order.IssuanceCreation: 0}, TimeZone: "Europe/Paris", Weekend: []time.Weekday{}, ReadyBy: "02:30"},
			"2027-03-28T00:00:00+01:00", order.IssuanceCreation, false, "2027-03-28T03:30:00+02:00"},
		{"ready before it came", early, "2026-03-03T09:30:00+01:00", order.IssuanceCreation, false, "2026-03-04T08:30:00+01:00"},
		{"ready before it came, on a Friday", early, "2026-03-06T08:30:00+01:00", order.IssuanceCreation, false, "2026-03-09T08:30:00+01:00"},
		{"another weekend, and nothing in time", gulf, "2026-03-04T23:00:00+04:00", order.IssuanceCreation, false, "2026-03-08T00:00:00+04:00"},
		{"no weekend, in no zone", noWeekend, "2026-03-06T23:00:00Z", order.IssuanceCreation, false, "2026-03-09T00:00:00Z"},
		{"nothing agreed", noWeekend, "2026-03-06T23:00:00Z", order.IssuanceRenewal, false, ""},
	} {
		var want time.Time
		if c.want != "" {
			want = at(c.want)
		}
		if got := calendar(t, c.sla).Due(at(c.received), c.issuance, c.urgent); !got.Equal(want) {
			t.Errorf("%s: received %s, due %s, want %s", c.name, c.received, got.In(want.Location()), want)
		}
	}
}

func TestCalendarFaults(t *testing.T) {
	t.Parallel()
	for name, sla := range map[string]order.SLA{
		"a zone":             {TimeZone: "Europe/Nowhere"},
		"a holiday":          {Holidays: []string{"2026-02-30"}},
		"a time of day":      {CutOff: "noon"},
		"a time to be ready": {ReadyBy: "25:00"},
		"no working day":     {Weekend: []time.Weekday{0, 1, 2, 3, 4, 5, 6}},
	} {
		if _, err := order.NewCalendar(sla); err == nil {
			t.Errorf("%s: no fault", name)
		}
	}
}

// Whatever was agreed, a card is due on a working day (or its very end), later than its
// order came, and no sooner than one whose order came earlier or that takes fewer days.
func TestDueIsAWorkingDay(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		zone := rapid.SampledFrom([]string{"UTC", "Europe/Paris", "America/New_York", "Asia/Kolkata", "Pacific/Apia", "Australia/Lord_Howe"}).Draw(t, "zone")
		location, err := time.LoadLocation(zone)
		if err != nil {
			t.Fatal(err)
		}
		weekend := rapid.SliceOfNDistinct(rapid.Map(rapid.IntRange(0, 6), func(d int) time.Weekday { return time.Weekday(d) }), 0, 4, func(d time.Weekday) time.Weekday { return d }).Draw(t, "weekend")
		if weekend == nil {
			weekend = []time.Weekday{}
		}
		first := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
		days := rapid.SliceOfN(rapid.IntRange(0, 500), 0, 40).Draw(t, "holidays")
		holidays := make(map[string]bool)
		var list []string
		for _, d := range days {
			day := first.AddDate(0, 0, d).Format(time.DateOnly)
			holidays[day] = true
			list = append(list, day)
		}
		timeOfDay := rapid.SampledFrom([]string{"", "00:00", "02:30", "12:00", "17:00", "23:59"})
		sla := order.SLA{
			WorkingDays: map[order.Issuance]int{order.IssuanceCreation: rapid.IntRange(0, 12).Draw(t, "days")},
			TimeZone:    zone, Weekend: weekend, Holidays: list, CutOff: timeOfDay.Draw(t, "cut-off"), ReadyBy: timeOfDay.Draw(t, "ready by"),
		}
		sla.WorkingDays[order.IssuanceRenewal] = sla.WorkingDays[order.IssuanceCreation] + 1
		c := calendar(t, sla)
		received := first.Add(time.Duration(rapid.IntRange(0, 400*24*60).Draw(t, "received")) * time.Minute)
		due := c.Due(received, order.IssuanceCreation, false)
		day := due.Add(-time.Nanosecond).In(location) // the end of a day belongs to it
		if sla.ReadyBy == "00:00" {
			day = due.In(location) // the beginning of one
		}
		for _, off := range weekend {
			if day.Weekday() == off {
				t.Fatalf("due on a %s: %s", off, due.In(location))
			}
		}
		if holidays[day.Format(time.DateOnly)] {
			t.Fatalf("due on a holiday: %s", due.In(location))
		}
		if !due.After(received) {
			t.Fatalf("due at %s, received at %s", due, received)
		}
		later := received.Add(time.Duration(rapid.IntRange(0, 10*24*60).Draw(t, "later")) * time.Minute)
		if next := c.Due(later, order.IssuanceCreation, false); next.Before(due) {
			t.Fatalf("received at %s and due at %s, but received at %s and due at %s", received, due, later, next)
		}
		if longer := c.Due(received, order.IssuanceRenewal, false); longer.Before(due) {
			t.Fatalf("one more day is due at %s, before %s", longer, due)
		}
	})
}
