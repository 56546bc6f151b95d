package invariant

import (
	"errors"
	"testing"
)

func TestBrokenInvariantPanicsOnlyInTestBuilds(t *testing.T) {
	for name, f := range map[string]func(){
		"check":  func() { Check(1 > 2, "%d > %d", 1, 2) },
		"costly": func() { Costly(func() error { return errors.New("1 > 2") }) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				got := recover()
				if Enabled && got != "invariant broken: 1 > 2" {
					t.Errorf("enabled: got %v", got)
				}
				if !Enabled && got != nil {
					t.Errorf("not enabled: got %v", got)
				}
			}()
			f()
		})
	}
	Check(true, "never printed")
	Costly(func() error { return nil })
}
