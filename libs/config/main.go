package config

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"reflect"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"

	"github.com/keelson/keelson/libs/log"
	"github.com/keelson/keelson/libs/resident"
	"github.com/keelson/keelson/libs/run"
	"github.com/keelson/keelson/libs/trace"
)

// Version is what --version and the API report. The Makefile sets it when it links a daemon.
var Version = "v1.36.6+keelson.0"

// Command is a second thing that a daemon's binary can do, such as "plan".
type Command struct {
	Name, Short string
	// Run gets the words after the command's name and returns the error to print, if any. An error
	// made with [Usage] exits with [ExitUsage], any other with 1.
	Run func(ctx context.Context, args []string, out io.Writer) error
}

// ExitUsage is how a daemon ends whose command line or configuration is wrong: to start it again is no use. It is
// sysexits.h's EX_CONFIG, and not 2, with which Go's runtime ends a process that panics or that a watchdog aborts.
const ExitUsage = 78

// usageError is a fault of the command line or the configuration.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

// Usage marks err as a fault of the command line or the configuration: it exits with [ExitUsage].
func Usage(err error) error { return usageError{err} }

// Main is all that a cmd/<daemon>/main.go calls. It never returns.
//
// The process ends with 0 after a clean end (also by SIGTERM or SIGINT), 1 when run failed, and
// [ExitUsage] when the command line or configuration is wrong. A second signal ends it at once.
func Main[C any](name, short string, defaults C, run func(ctx context.Context, cfg C, log *slog.Logger) error, commands ...Command) {
	relaxTimers()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-ctx.Done()
		stop() // from here on the signals have their usual effect
	}()
	os.Exit(Exec(ctx, name, short, defaults, run, commands, os.Args[1:], os.Stdout, os.Stderr))
}

// Exec is Main without the process: it returns the exit code. Tests call it.
func Exec[C any](ctx context.Context, name, short string, defaults C, runDaemon func(ctx context.Context, cfg C, log *slog.Logger) error,
	commands []Command, args []string, stdout, stderr io.Writer) int {
	complain := func(err error) int {
		code := 1
		if errors.As(err, new(usageError)) {
			code = ExitUsage
		}
		for line := range strings.SplitSeq(strings.TrimRight(strings.TrimPrefix(err.Error(), name+": "), "\n"), "\n") {
			fmt.Fprintf(stderr, "%s: %s\n", name, line)
		}
		return code
	}
	if len(args) > 0 {
		for _, c := range commands {
			if args[0] == c.Name {
				if err := c.Run(ctx, args[1:], stdout); err != nil {
					return complain(err)
				}
				return 0
			}
		}
	}
	cfg, done, err := Parse(name, short, defaults, commands, args, stdout)
	if err != nil {
		return complain(Usage(err))
	}
	if done {
		return 0
	}
	common := DefaultCommon()
	if c, ok := any(cfg).(interface{ common() Common }); ok {
		common = c.common()
	}
	logger, err := log.New(common.LogLevel, common.LogFormat, stderr)
	if err != nil {
		return complain(Usage(err))
	}
	slog.SetDefault(logger)
	stopTrace, err := trace.Setup(ctx, trace.Config{Endpoint: common.TracingEndpoint, SamplingRatePerMillion: common.TracingSamplingRatePerMillion}, name)
	if err != nil {
		return complain(Usage(err))
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
		defer cancel()
		if err := stopTrace(ctx); err != nil {
			logger.Warn("tracing did not stop cleanly", "err", err)
		}
	}()
	logger.Info("starting", "daemon", name, "version", Version, "go", runtime.Version())
	settled := make(chan struct{})
	settling, settle := context.WithCancel(ctx)
	go func() { defer close(settled); _ = resident.Settle(settling) }()
	err = run.Safely(name, func() error { return runDaemon(ctx, cfg, logger) })
	settle()
	<-settled
	if err != nil && !(ctx.Err() != nil && errors.Is(err, context.Canceled)) {
		return complain(err)
	}
	logger.Info("ended", "daemon", name)
	return 0
}

// Parse makes the configuration of a daemon from its command line. done means that the command line
// asked for --help or --version, which has been printed.
func Parse[C any](name, short string, defaults C, commands []Command, args []string, stdout io.Writer) (cfg C, done bool, err error) {
	cfg = defaults
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	file := fs.String("config", "", "YAML file with the configuration; flags win over it")
	version := fs.Bool("version", false, "print the version and exit")
	help := fs.BoolP("help", "h", false, "print this and exit")
	set := map[string]string{} // flag → text, in the order of pflag's own checks
	walk(reflect.ValueOf(&cfg).Elem(), "", func(f one) {
		flag, ok := f.tag.Lookup("flag")
		if !ok || flag == "" || flag == "-" {
			return
		}
		val := &value{of: reflect.New(f.value.Type()).Elem(), text: text(f.value), record: func(s string) { set[flag] = s }}
		val.of.Set(f.value)
		pf := &pflag.Flag{Name: flag, Usage: f.tag.Get("help"), Value: val, DefValue: val.text}
		if len(flag) == 1 {
			pf.Shorthand = flag
		}
		if f.value.Kind() == reflect.Bool {
			pf.NoOptDefVal = "true"
		}
		fs.AddFlag(pf)
	})
	if err := fs.Parse(args); err != nil {
		return cfg, false, fmt.Errorf("%w (see %s --help)", err, name)
	}
	switch {
	case *help:
		fmt.Fprintf(stdout, "%s: %s\n\nUsage: %s [--config FILE] [flags]\n", name, short, name)
		for _, c := range commands {
			fmt.Fprintf(stdout, "       %s %s: %s\n", name, c.Name, c.Short)
		}
		fmt.Fprintf(stdout, "\nFlags:\n%s", fs.FlagUsagesWrapped(110))
		return cfg, true, nil
	case *version:
		fmt.Fprintf(stdout, "%s %s\n", name, Version)
		return cfg, true, nil
	case fs.NArg() > 0:
		return cfg, false, fmt.Errorf("unexpected argument %q (see %s --help)", fs.Arg(0), name)
	}
	if *file != "" {
		if err := Load(*file, &cfg); err != nil {
			return cfg, false, err
		}
	}
	var errs []error
	names := map[string]string{} // path in the file → flag, to name both in messages
	walk(reflect.ValueOf(&cfg).Elem(), "", func(f one) {
		flag := f.tag.Get("flag")
		if flag == "" || flag == "-" {
			return
		}
		names[f.path] = flag
		if s, ok := set[flag]; ok {
			if err := setText(f.value, s); err != nil {
				errs = append(errs, fmt.Errorf("--%s: %w", flag, err))
			}
		}
	})
	if c, ok := any(cfg).(Checked); ok && len(errs) == 0 {
		for _, fault := range c.Validate() {
			where := ""
			if flag := names[fault.Field]; flag != "" {
				where = " (flag --" + flag + ")"
			}
			if *file != "" {
				where += " in " + *file
			}
			errs = append(errs, fmt.Errorf("%w%s", fault, where))
		}
	}
	return cfg, false, errors.Join(errs...)
}

// value lets pflag check a flag's text by the type of its field. A list or map flag that is given
// several times adds up, as Kubernetes' own do.
type value struct {
	of     reflect.Value
	text   string
	given  bool
	record func(string)
}

func (v *value) String() string { return v.text }

func (v *value) Set(s string) error {
	if k := v.of.Kind(); (k == reflect.Slice || k == reflect.Map) && v.given && v.text != "" {
		s = v.text + "," + s
	}
	if err := setText(v.of, s); err != nil {
		return err
	}
	v.text, v.given = s, true
	v.record(s)
	return nil
}

func (v *value) Type() string {
	switch t := v.of.Type(); {
	case strings.HasSuffix(t.String(), "Duration"):
		return "duration"
	case t.Kind() == reflect.Slice:
		return "list"
	case t.Kind() == reflect.Map:
		return "key=value,..."
	default:
		return t.Kind().String()
	}
}
