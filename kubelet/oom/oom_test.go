package oom

import "testing"

func TestParse(t *testing.T) {
	const global = "oom-kill:constraint=CONSTRAINT_NONE,nodemask=(null),cpuset=/,mems_allowed=0,global_oom,task_memcg=/user.slice,task="
	for record, want := range map[string]Victim{
		"3,905,1206,-;" + global + "tail,pid=1234,uid=0\n SUBSYSTEM=memory\n": {"tail", 1234},
		"3,905,1206,-;" + global + "a,pid=1,b,pid=77,uid=0\n":                 {"a,pid=1,b", 77},
		"3,905,1206,-;" + global + "tail,uid=0\n":                             {},
		"3,905,1206,-;" + global + "tail,pid=x,uid=0\n":                       {},
		// A container's limit is no matter of the machine's.
		"3,905,1206,-;oom-kill:constraint=CONSTRAINT_MEMCG,nodemask=(null),cpuset=c,mems_allowed=0,oom_memcg=/kubepods.slice/p,task_memcg=/kubepods.slice/p/c,task=tail,pid=1,uid=0\n": {},
		"3,906,1207,-;Out of memory: Killed process 1234 (tail) total-vm:4kB\n":                                                                                                        {},
		"6,1,2,-;anything;oom-kill:,global_oom,,task=x,pid=1,uid=0\n":                                                                                                                  {},
		"": {},
	} {
		got, ok := parse(record)
		if ok != (want != Victim{}) || ok && got != want {
			t.Errorf("%q: %+v, %v", record, got, ok)
		}
	}
	if got := (Victim{"tail", 12}).Text(); got != "System OOM encountered, victim process: tail, pid: 12" {
		t.Error(got)
	}
}
